// JSON over HTTP; an answer that is no success is an Error with the server's sentence.

export async function getJson(url, options) {
  const answer = await fetch(url, options);
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(body.error ?? body.detail ?? `HTTP ${answer.status}`), { status: answer.status });
  return body;
}

export const postJson = (url, body, headers = {}) =>
  getJson(url, { method: "POST", headers: { "Content-Type": "application/json", ...headers }, body: JSON.stringify(body) });
