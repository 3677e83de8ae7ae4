"""`python -m dqn_adapters.benchmark` is `dqn-bench`."""

from dqn_adapters.benchmark.cli import main

if __name__ == "__main__":
    main()
