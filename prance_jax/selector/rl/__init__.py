"""PPO in pure JAX, for any batched environment with the interface of gymnax.

- `types`: settings, state, and the interface of an environment.
- `networks`: actor and critic.
- `distributions`: Gaussian and multi-categorical policies.
- `advantage`: generalised advantage estimation.
- `losses`: losses of policy and value.
- `ppo`: rollout, update and training.
"""
