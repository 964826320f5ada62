"""PRANCE's selector: observations, actions, rewards and the environment that PPO trains in."""
