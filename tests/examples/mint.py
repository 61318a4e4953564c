"""Prints the answer of the kit for Python backends: PYTHONPATH=<its folder> python mint.py <user>"""

import json
import sys

from fal_proxy_sessions import session_answer

body, status, headers = session_answer(sys.argv[1], ttl_seconds=60, endpoints=["fal-ai/llava-next"])
print(json.dumps([body.decode(), status, headers]))
