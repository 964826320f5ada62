"""PRANCE's selector: what it observes, what it chooses, and the reward that PPO trains it on.

Read the files in this order:

1. `environment`: the Markov decision process, `PranceEnv.reset` and `PranceEnv.step`. One image,
   one decision per group.
2. `observation`: from the state of inference at a decision point to the vector that the selector
   reads.
3. `actions`: from the selector's action to widths, MLP sizes and keep rates.
4. `reward`: from the logits and the cost of the finished structure to the reward.
5. `cost_weight`: how much one dense network of MACs costs; sampled where one selector serves every
   budget.
6. `policies`: ways to decide at inference: trained selector, random, static, given.
7. `rl`: PPO, which knows nothing of images: `types`, `networks`, `distributions`, `weighted`,
   `advantage`, `losses`, `actor_critic`, `ppo`.

To change the reward, open `reward` (the formula and its settings, `RewardConfig`). A reward of
something that `reward` is not given today also needs `PranceEnv.step` in `environment`, which
passes it on. The dual ascent of the cost weight after each update is `reward.update_cost_weight`;
`prance_jax.training.stages.selector` calls it.
"""
