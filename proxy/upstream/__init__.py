"""fal's side: what is sent there, and what comes back.

httpx is imported from below here first, and without its command line, which is not used: that one brings a terminal
library and a syntax highlighter, which an idle process would hold in memory.
"""

import sys

# What stands for None here counts as not installed; httpx has an answer for that.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
