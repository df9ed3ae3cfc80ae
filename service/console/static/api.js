// Asks the depot. The token stays in this tab's session storage, and travels in a header alone.

const KEY = "kvdepot token";

export class Refused extends Error {
  constructor(status, reason, message) {
    super(message);
    this.status = status;
    this.reason = reason;
  }
}

export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

export async function ask(question, parameters = {}) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== "" && value !== undefined));
  const headers = token.get() ? { authorization: `Bearer ${token.get()}` } : {};
  let response;
  try {
    response = await fetch(`/api/${question}?${query}`, { headers, cache: "no-store", credentials: "omit", signal: AbortSignal.timeout(8000) });
  } catch {
    throw new Refused(0, "UNREACHABLE", "the depot does not answer");
  }
  let body;
  try {
    body = await response.json();
  } catch {
    throw new Refused(response.status, "NOT_JSON", "the answer is not the console's");
  }
  if (!response.ok) throw new Refused(response.status, body.reason, body.message);
  return body;
}
