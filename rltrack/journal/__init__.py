"""The run's append-only record of everything that happened: one JSON object a line.

Every record has ``kind`` and ``time`` (Unix seconds, fixed when logged). What training produces is *numbered*: it carries
``seq`` (1, 2, 3, …) and ``step`` (env steps); what belongs to a process (attempts, signals, errors, the end) is not.

======================  =================================================================================
kind                    fields
======================  =================================================================================
``metrics``             ``step``, ``values`` {key: number}
``episodes``            ``step``, ``returns``, ``lengths``, ``steps``: the episodes that ended in an iteration
``evaluation``          ``step``, ``returns``, ``lengths``, ``mean``, ``std``, ``median``, ``iqm``, ``interval``, …
``decision``            ``step``, ``decision``, ``reason``, ``numbers``
``configuration``       ``run_id``, ``identity``, ``agent``: first line of the journal (not numbered)
``checkpoint``          ``step``, ``version``, ``score``, ``resumable`` (not numbered: some are due by the clock)
``attempt``             ``number``, ``resumed_from``, ``exact``, ``environments`` (tier), ``host``, ``pid``, ``versions``,
                        ``missing`` [text]: records that the journal had lost when the attempt began (not numbered)
``warning``             ``message`` (not numbered)
``signal``              ``name`` (not numbered)
``error``               ``error``, ``message`` (not numbered)
``end``                 ``state``, ``reason``, ``env_steps``, ``episodes``, ``seconds`` (not numbered)
``reproduction``        ``reproduced``: whether training it again gave the same bits; ``result`` in words (not numbered)
======================  =================================================================================

Each line has a number and a checksum in front (`journal.lines`); what does not match is left out by readers, and reported
(`journal.reading`).
"""

from __future__ import annotations

from rltrack.journal.lines import Record, decode_record, encode_record
from rltrack.journal.reading import JournalReader, read_from, read_journal, read_tail, unreadable
from rltrack.journal.writing import Journal

__all__ = [
    "KINDS", "Journal", "JournalReader", "Record", "decode_record", "encode_record", "read_from", "read_journal", "read_tail",
    "unreadable",
]  # fmt: skip

KINDS = (
    "configuration",
    "attempt",
    "metrics",
    "episodes",
    "evaluation",
    "decision",
    "checkpoint",
    "warning",
    "signal",
    "error",
    "end",
    "reproduction",
)
