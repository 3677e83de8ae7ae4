"""`python -m dqn_adapters.sb3.zoo`."""

from dqn_adapters.sb3.zoo import main

main()
