"""How the learner computes."""
