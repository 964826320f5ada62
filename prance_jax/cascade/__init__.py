"""Adaptive inference by a cascade: answer cheaply, see how sure the answer is, then stop, go deeper or look again.

`spec.cascade` has the vocabulary: look, exit, step, node, tree. Read the files in this order:

1. `looks`: parameters of the looks, and how a look gets the tokens of the one before.
2. `forward`: one step, the whole tree (compact), and the forward pass with decisions (masked).
3. `observation`: what a decision is based on.
4. `policies`: ways to decide inside the network.
5. `executor`: serving; images that stopped leave the batch.
6. `table`: the decision process as a table, its optimum, and the environment that PPO trains on.
7. `routing`: selector, confidence thresholds and label oracle on such a table.
8. `tree`: the tree of steps from a few structures per look.
9. `passes`: whole looks without decisions, for stage one.

To change the reward, open `table` (`TableEnv`); what a decision sees, `observation`; which steps there are, `tree`.
"""
