"""Writes the measured parts of `docs/demo-model.md`: `python tools/demo/report.py DIR DOC`.

A measured part stands between `<!-- measured: NAME -->` and `<!-- end -->`.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.demo.corpus import LANGUAGES, SPECIAL_TOPICS
from tools.demo.evaluate import Case, Evaluation, HeldOutResult, default_earlier_turns

_PART = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


class Report:
    """One method a part; the name of the part is the name of the method."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.evaluation = Evaluation(directory)

    def architecture(self) -> str:
        config = self.evaluation.model.config
        parameters = {name: p.numel() for name, p in self.evaluation.model.named_parameters()}
        routed = sum(n for name, n in parameters.items() if name.endswith((".gate_up", ".down")))
        total = sum(parameters.values())
        active = total - routed + routed * config.top_k // config.num_experts
        rows = [
            ("layers / hidden / heads / head_dim", (
                f"{config.num_layers} / {config.hidden_size} / {config.num_heads} / "
                f"{config.head_dim}"
            )),
            ("routed experts / top-k / shared", (
                f"{config.num_experts} / {config.top_k} / {config.num_shared_experts}"
            )),
            ("expert width", str(config.expert_width)),
            ("vocabulary / context", f"{config.vocab_size} / {config.max_positions}"),
            ("RoPE theta / eps", f"{config.rope_theta:.0f} / {config.rms_norm_eps}"),
            ("parameters, all / active for a token", f"{total:,} / {active:,}"),
        ]  # fmt: skip
        return _table(("", ""), rows)

    def sizes(self) -> str:
        names = ("*.json", "*.model", "*.safetensors")
        files = [path for name in names for path in self.directory.glob(name)]
        files.sort(key=lambda path: -path.stat().st_size)
        rows = [(f"`{path.name}`", f"{path.stat().st_size:,}") for path in files]
        rows.append(("together", f"{sum(path.stat().st_size for path in files):,}"))
        return _table(("file", "bytes"), rows)

    def corpus(self) -> str:
        corpus, encode = self.evaluation.corpus, self.evaluation.tokenizer.encode
        rows = []
        for language in LANGUAGES:
            entries = [e for e in corpus.entries.values() if e.language == language]
            questions = [q for q in corpus.questions() if q.language == language]
            lengths = [len(encode(e.answer)) for e in entries]
            rows.append(
                (
                    {"en": "English", "zh": "Chinese"}[language],
                    str(len([e for e in entries if e.topic not in SPECIAL_TOPICS])),
                    str(len(questions)),
                    str(sum(len(e.terms) * len(corpus.phrasing.templates[language])
                            for e in entries)),
                    str(sum(e.more is not None for e in entries)),
                    f"{sum(lengths) / len(lengths):.0f}, at most {max(lengths)}",
                )
            )  # fmt: skip
        header = (
            "", "topics", "written questions", "from templates", "continuations",
            "tokens an answer",
        )  # fmt: skip
        return _table(header, rows)

    def results(self) -> str:
        perplexity, tokens = self.evaluation.perplexity()
        load = self.evaluation.expert_load()
        earlier = default_earlier_turns(self.evaluation.corpus)
        rows = [
            ("every written question, alone", _score(self.evaluation.single_turn())),
            ("turns 3 to 6 of random chats, follow-ups included",
             _score(self.evaluation.later_turns())),
            ("after a system message that was not trained on",
             _score(self.evaluation.with_system_message())),
            ("held-out questions, alone", _passed(self.evaluation.held_out())),
            ("held-out questions, as fourth turn of a chat",
             _passed(self.evaluation.held_out(earlier))),
            (f"perplexity of the held-out text ({tokens} tokens)", f"{perplexity:.1f}"),
            ("busiest and idlest expert, relative to an even share",
             f"{load.max():.2f}, {load.min():.2f}"),
        ]  # fmt: skip
        return _table(("", "result"), rows)

    def held_out(self) -> str:
        rows = [
            (
                result.question.text,
                f"`{result.question.topic}`",
                "pass" if result.passed else f"**fail**: {_replied(result)}",
            )
            for result in self.evaluation.held_out()
        ]
        return _table(("question", "right topic", ""), rows)


def _replied(result: HeldOutResult) -> str:
    return f"`{result.replied_topic}`" if result.replied_topic else f"“{result.reply}”"


def _score(results: list[tuple[Case, bool]]) -> str:
    return f"{sum(passed for _, passed in results)} of {len(results)}"


def _passed(results: list[HeldOutResult]) -> str:
    return f"{sum(result.passed for result in results)} of {len(results)}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines: list[Sequence[str]] = [header, ["---"] * len(header), *rows]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def rewrite(document: str, report: Report) -> str:
    def part(match: re.Match[str]) -> str:
        measure: Callable[[], str] = getattr(report, match[2])
        return f"{match[1]}{measure()}{match[3]}"

    return _PART.sub(part, document)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="an exported demo")
    parser.add_argument("document", type=Path, help="the document to rewrite")
    options = parser.parse_args()
    text = options.document.read_text(encoding="utf-8")
    options.document.write_text(rewrite(text, Report(options.directory)), encoding="utf-8")


if __name__ == "__main__":
    main()
