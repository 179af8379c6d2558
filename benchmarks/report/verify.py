"""A fresh store's runs judged against the committed record: identical, same verdict, flipped, or not run."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import record
from benchmarks.record import Comparison, Record
from benchmarks.report.claims import Claims, Judged, judge
from benchmarks.report.tables import Results

# best first; the last is about parts that the committed record does not decide either
OUTCOMES = ("identical", "same verdict", "flipped", "not run", "not in the record")


@dataclass(frozen=True)
class Verified:
    """A part of a claim: the committed verdict, the fresh one, and what became of it (one of :data:`OUTCOMES`)."""

    claim: str
    committed: Judged
    fresh: Judged
    outcome: str


@dataclass(frozen=True)
class Verification:
    """All parts; every fresh run with its committed one; and the committed runs that the store does not hold."""

    parts: list[Verified]
    runs: list[Comparison]
    missing: list[Record]

    @property
    def confirmed(self) -> bool:
        """Whether all that is committed was run again, and no verdict flipped."""
        return not self.missing and not any(part.outcome in ("flipped", "not run") for part in self.parts)

    def tally(self, claim: str) -> str:
        found = [part.outcome for part in self.parts if part.claim == claim]
        return ", ".join(f"{found.count(outcome)} {outcome}" for outcome in OUTCOMES if outcome in found)


def verify(profile: str, fresh: Sequence[Record], committed: Sequence[Record], rules: Claims) -> Verification:
    """Judge both sides by the same rules, on the records alone."""
    runs = record.compare(fresh, committed)
    identical = {one.ours.key for one in runs if one.verdict == "identical"}
    here = {one.key for one in fresh if one.status == "finished"}
    there = [one for one in committed if one.status == "finished"]

    def outcome(old: Judged, new: Judged) -> str:
        if not old.keys:
            return "not in the record"
        if not new.keys or old.keys - new.keys:
            return "not run"
        if old.keys == new.keys <= identical and old.verdict == new.verdict:
            return "identical"
        return "same verdict" if old.verdict == new.verdict else "flipped"

    pairs = zip(*(judge(rules, Results.of(profile, records)) for records in (committed, fresh)), strict=True)
    parts = [
        Verified(old.claim.id, one, other, outcome(one, other))
        for old, new in pairs
        for one, other in zip(old.parts, new.parts, strict=True)
    ]
    return Verification(parts, runs, [one for one in there if one.key not in here])
