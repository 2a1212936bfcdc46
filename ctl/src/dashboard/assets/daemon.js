// Questions to the daemon.

/** How long an answer may take; one for events takes 20 s when there are none. */
const ANSWER_TIMEOUT = 30_000;

/** The JSON at a path, with these parameters. */
export async function ask(path, parameters = {}, signal = undefined) {
  const url = `${path}?${new URLSearchParams(parameters)}`;
  const timeout = AbortSignal.timeout(ANSWER_TIMEOUT);
  const answer = await fetch(url, { signal: signal ? AbortSignal.any([signal, timeout]) : timeout });
  if (!answer.ok) {
    throw new Error(`${path}: ${answer.status}`);
  }
  return answer.json();
}

export function sleep(milliseconds) {
  return new Promise((done) => setTimeout(done, milliseconds));
}

/** Waits until somebody can see the page. */
export async function visible() {
  while (document.hidden) {
    await new Promise((done) => document.addEventListener("visibilitychange", done, { once: true }));
  }
}
