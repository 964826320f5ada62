"""Adaptive inference by a cascade: answer cheaply, see how sure the answer is, then stop, go deeper or look again.

- `looks`: parameters of the looks, and how a look gets the tokens of the one before.
- `forward`: one step, the whole tree, and the forward pass with decisions.
- `observation`: what a decision is based on.
"""
