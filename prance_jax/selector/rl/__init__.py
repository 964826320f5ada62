"""PPO in pure JAX, for any batched environment with the interface of gymnax.

Episodes may end early, and actions may be unavailable in some states (action masks).

- `types`: settings, state, and the interface of an environment.
- `networks`: actor and critic.
- `distributions`: Gaussian and multi-categorical policies.
- `weighted`: means over the decisions that count.
- `advantage`: generalised advantage estimation.
- `losses`: losses of policy and value.
- `actor_critic`: networks, distribution and optimizers together; behaviour cloning.
- `ppo`: rollout, update and training.
"""
