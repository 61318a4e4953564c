import { useFalProxy } from "@fal-proxy/client/react";
import { useEffect, useState } from "react";

const WORDS = {
  idle: "",
  uploading: "Uploading the picture",
  queued: "Waiting in the queue",
  running: "The model looks at the picture",
  done: "Answered",
  failed: "",
  cancelled: "Cancelled",
};

export function Ask({ fal, onSignedOut }) {
  const call = useFalProxy(fal, "fal-ai/llava-next");
  const [picture, setPicture] = useState();

  useEffect(() => {
    if (call.error?.error_type === "signed_out") onSignedOut();
  }, [call.error, onSignedOut]);

  function ask(event) {
    event.preventDefault(); // React's `action` would empty the form.
    const form = new FormData(event.currentTarget);
    call.submit({ image_url: form.get("picture"), prompt: form.get("question"), max_tokens: 256 });
  }

  return (
    <form onSubmit={ask}>
      <label>
        Picture
        <input name="picture" type="file" accept="image/png,image/jpeg,image/webp" required
          onChange={(event) => setPicture(event.target.files[0])} />
      </label>
      <Preview picture={picture} />
      <label>Question <input name="question" defaultValue="What is in this picture?" required /></label>
      <p>
        <button disabled={call.busy}>Ask</button>
        {call.busy && <button type="button" onClick={call.cancel}>Cancel</button>}
      </p>
      <p role="status">{WORDS[call.status]}{call.position > 0 && `, ${call.position} in front of you`}</p>
      {call.logs.length > 0 && (
        <details>
          <summary>Log of the model</summary>
          <ol>{call.logs.map(({ message }, at) => <li key={at}>{message}</li>)}</ol>
        </details>
      )}
      {call.status === "done" && <section aria-label="Answer">{call.result.output}</section>}
      {call.status === "failed" && <Failure error={call.error} />}
    </form>
  );
}

function Preview({ picture }) {
  const [url, setUrl] = useState();
  useEffect(() => {
    if (!picture) return setUrl(undefined);
    const made = URL.createObjectURL(picture);
    setUrl(made);
    return () => URL.revokeObjectURL(made);
  }, [picture]);
  return url ? <img src={url} alt="The picture that you chose" /> : null;
}

function Failure({ error }) {
  return (
    <p role="alert">
      {error.message}
      {error.retry_after && ` Try again in ${error.retry_after} seconds.`}
    </p>
  );
}
