"""The Markov decision process, its actor and critic, and PPO."""
