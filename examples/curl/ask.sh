#!/usr/bin/env bash
# Ask LLaVA about a picture, through fal-proxy: ask.sh cat.png "What is in this picture?"
set -euo pipefail

picture=${1:?usage: FAL_PROXY_URL=… FAL_PROXY_SESSION=… ask.sh PICTURE [QUESTION]}
question=${2:-What is in this picture?}
queue=${FAL_PROXY_URL:?is not set}/fal/queue/fal-ai/llava-next

call() {
  curl --silent --show-error --fail-with-body --header "Authorization: Bearer ${FAL_PROXY_SESSION:?is not set}" "$@"
}

# The type does not matter much: the model looks at the bytes. Through a pipe, as no argument can be that long.
input() {
  printf '{"prompt":"%s","image_url":"data:image/png;base64,' "$(sed 's/[\\"]/\\&/g' <<<"$question")"
  base64 <"$picture" | tr -d '\n'
  printf '"}'
}

submitted=$(input | call --header 'Content-Type: application/json' --data-binary @- "$queue")
job=$(sed -n 's/.*"request_id":"\([^"]*\)".*/\1/p' <<<"$submitted")

# Server-sent events, one status a line; the stream ends when the job does.
call --no-buffer "$queue/requests/$job/status/stream?logs=1" | sed -un 's/^data: //p' >&2

call "$queue/requests/$job"
