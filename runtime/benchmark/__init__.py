"""``python -m runtime benchmark``: speed and memory beside other programs, in turn, in one run.

Machines are shared and swing, so a time on its own says little. Every program under test is a process of its own;
in each round each of them does the same work, one after the other, and what is reported is the median of the rounds'
*ratios*. ``protocol.py`` is what such a program speaks, ``program.py`` runs one, ``drawing.py`` and ``networks.py``
are the two kinds of work, and ``docs/benchmark.md`` explains all of it.
"""

from runtime.benchmark.command import add_arguments

__all__ = ["add_arguments"]
