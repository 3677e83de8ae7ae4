"""The benchmark harness: suites, systems, workers, statistics and the report.

The command `dqn-bench` is in `cli`. A benchmark is described by a `Suite` (a TOML file), which
unfolds into `RunSpec`s; a system trains one of them and tells a `Recorder` what happened.
"""

from dqn_adapters._extras import require

for _module in ("typer", "psutil", "scipy", "matplotlib", "jinja2"):
    require(_module, extra="bench")

from dqn_adapters.benchmark.recorder import Evaluation, Recorder  # noqa: E402
from dqn_adapters.benchmark.spec import EnvironmentSpec, EvaluationSpec, RunSpec  # noqa: E402
from dqn_adapters.benchmark.suite import Suite, SuiteError, load_suite  # noqa: E402

__all__ = [
    "EnvironmentSpec",
    "Evaluation",
    "EvaluationSpec",
    "Recorder",
    "RunSpec",
    "Suite",
    "SuiteError",
    "load_suite",
]
