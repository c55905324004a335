"""``python -m runtime``, which says when its first step begins: what the benchmark of whole pictures starts.

Nothing else is different: the words are those of ``python -m runtime``, and the process is its own.
"""

from __future__ import annotations

import sys
from typing import Any

from runtime import __main__, pipeline
from runtime.benchmark.process import FIRST_STEP


def main() -> int:
    names = vars(pipeline)  # where the loop looks up what it calls
    predict, said = names["predict"], False

    def announced(*arguments: Any) -> Any:
        nonlocal said
        if not said:
            said = True
            print(FIRST_STEP, file=sys.stderr, flush=True)
        return predict(*arguments)

    names["predict"] = announced
    return __main__.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
