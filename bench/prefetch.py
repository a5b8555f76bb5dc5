"""Whether copying the next layer's experts ahead pays, on described machines.

    python -m bench.prefetch [--precision int4 int8 bf16] [--tokens 256]

The runtime's policy, scheduler and rules in the simulator, on a synthetic text: without guesses at
the next layer's experts, and with guesses of which a share is right. The plans are for a context of
4096 tokens in bf16.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench.table import Report
from xverse_runtime.config import ModelConfig
from xverse_runtime.memory_plan import Wishes, plan_memory
from xverse_runtime.offload.machines import find_machine
from xverse_runtime.offload.policy import ScoreWindow
from xverse_runtime.offload.simulator import Options, Simulation
from xverse_runtime.offload.simulator_compare import FLOOR, WARM_UP, made_up_tokens
from xverse_runtime.offload.simulator_host import HostExperts
from xverse_runtime.offload.simulator_report import Report as Simulated
from xverse_runtime.offload.simulator_workload import Workload
from xverse_runtime.offload.synthetic_guesses import CAREFUL, DEMO
from xverse_runtime.offload.trace import RoutedToken
from xverse_runtime.store.synthetic import A4_2B

MACHINES = (
    "RTX 4060 8GB",
    "RTX 4060 Laptop 8GB",
    "RTX 3060 12GB",
    "RTX 4070 12GB",
    "RTX 4060 Ti 16GB",
    "RTX 3090 24GB",
    "RTX 4090 24GB",
)
SHARES = (1.0, DEMO, CAREFUL, 0.35, 0.2)


def simulated(
    machine_name: str,
    precision: str,
    guessed: float | None,
    tokens: Sequence[RoutedToken],
) -> Simulated:
    """What came of the tokens after the warm-up."""
    model, machine = ModelConfig.from_dict(A4_2B), find_machine(machine_name)
    wishes = Wishes(device="cuda", precision=precision, context=4096, kv="bf16")
    placement = plan_memory(model, machine, wishes).placement
    simulation = Simulation(
        Workload.of(placement),
        machine,
        placement.expert_slots,
        ScoreWindow.for_model(model.num_layers, model.top_k),
        Options(
            floor=min(FLOOR, placement.expert_slots // model.num_layers),
            guessed=guessed,
        ),
        HostExperts.of(placement),
    )
    simulation.run(tokens[:WARM_UP])
    return simulation.run(tokens[WARM_UP:])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.prefetch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--precision", nargs="+", default=["int4", "int8", "bf16"])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--output", type=Path, default=Path("bench/results"))
    options = parser.parse_args()
    tokens = made_up_tokens(ModelConfig.from_dict(A4_2B), WARM_UP + options.tokens)
    flags = f"--precision {' '.join(options.precision)}"
    lines = [f"`python -m bench.prefetch {flags}`: simulated tokens/s."]
    report = Report("prefetch", options.output, lines)
    for precision in options.precision:
        shares = [f"{100 * share:.0f} % right" for share in SHARES]
        sent = "sent a token, and used, at 69 %"
        report.table(precision, ["machine", "no prefetch", *shares, sent])
        for machine in MACHINES:
            without = simulated(machine, precision, None, tokens)
            if without.hit_rate == 1:
                report.row(machine, f"{without.tokens_per_s:.1f}, all resident")
                continue
            cells, copies = [], ""
            for share in SHARES:
                with_guesses = simulated(machine, precision, share, tokens)
                gain = with_guesses.tokens_per_s / without.tokens_per_s - 1
                cells.append(f"{with_guesses.tokens_per_s:.1f} ({100 * gain:+.1f} %)")
                if share == DEMO:
                    counts = with_guesses.counts
                    used = counts.useful / max(1, counts.prefetched)
                    copies = f"{counts.prefetched / counts.tokens:.1f}, {100 * used:.0f} %"
            report.row(machine, f"{without.tokens_per_s:.1f}", *cells, copies)
    print(report.write())


if __name__ == "__main__":
    main()
