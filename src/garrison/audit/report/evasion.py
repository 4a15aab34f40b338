"""The tables of an audit's evasion part: one for each attack, a row for each target."""

from __future__ import annotations

from garrison.audit.report.content import EvasionCard, Report, Share
from garrison.audit.report.tables import NOTHING, TITLES, Cell, Table


def evasions(report: Report) -> tuple[Table, ...]:
    """One table an attack; none where the plan has no evasions."""
    names = dict.fromkeys((card.attack, card.answers, card.budget) for card in report.evasions)
    return tuple(_table([c for c in report.evasions if (c.attack, c.answers, c.budget) == name]) for name in names)


def _table(cards: list[EvasionCard]) -> Table:
    one = cards[0]
    watched = any(card.watched for card in cards)
    head = (
        "",
        "fools the service",
        "fools its model without the guard",
        "questions to success",
        "change",
        "refused",
        *(("alarmed accounts", "questions to the alarm", "before success") if watched else ()),
    )
    caption = (
        f"{one.pictures} pictures that were named rightly, changed by at most {one.epsilon:.3g} ({one.norm}, in shares of the range), {one.budget:,} questions for each, "
        f"answers: {one.answers}. Intervals are Wilson's, 95 %. Questions and change are medians over the pictures with a success."
    )
    if watched:
        caption += " Alarms: of accounts that each attack one picture; median, largest, and all accounts together at the very first alarm."
    return Table(f"Evasion: {one.attack}", caption, head, tuple(_row(card, watched=watched) for card in cards))


def _row(card: EvasionCard, *, watched: bool) -> tuple[Cell, ...]:
    left = f"{card.left_out} left out" if card.left_out else ""
    cells = (
        Cell(TITLES.get(card.target, card.target), left),
        _share(card.success_served),
        NOTHING if card.success_undefended is None else _share(card.success_undefended),
        NOTHING if card.queries_to_success is None else Cell(f"{card.queries_to_success:,.0f}"),
        NOTHING if card.distortion is None else Cell(f"{card.distortion:.3g}"),
        Cell(f"{100 * card.unanswered:.1f} %"),
    )
    return (*cells, *_alarms(card)) if watched else cells


def _alarms(card: EvasionCard) -> tuple[Cell, ...]:
    if not card.watched:
        return NOTHING, NOTHING, NOTHING
    accounts = card.pictures if card.accounts == "each" else 1
    rang = Cell(f"{card.alarmed} of {accounts}", ", ".join(card.detectors))
    if card.alarm_queries is None:
        return rang, NOTHING, NOTHING
    summed = "" if card.alarm_summed is None else f", {card.alarm_summed:,.0f} in all"
    when = Cell(f"{card.alarm_queries:,.0f}", f"at most {card.alarm_most:,}{summed}")
    return rang, when, Cell(str(card.alarmed_before_success)) if card.accounts == "each" else NOTHING


def _share(share: Share) -> Cell:
    span = "" if share.low is None or share.high is None else f"{100 * share.low:.1f} to {100 * share.high:.1f}"
    return Cell(f"{100 * share.value:.1f} %", span)
