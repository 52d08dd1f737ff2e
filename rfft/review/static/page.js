// What all parts of the page use. All texts are set as text, never as HTML.

export const $ = (id) => document.getElementById(id);

export function make(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === "text") element.textContent = value;
    else if (name === "click") element.addEventListener("click", value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
export const words = (name) => name.replaceAll("_", " ");

export async function call(path, body) {
  const options = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, options);
  if (!response.ok) {
    const found = await response.json().catch(() => ({}));
    throw new Error(typeof found.detail === "string" ? found.detail : `the server answered ${response.status}`);
  }
  return response.status === 204 ? null : response.json();
}

export function tell(text, error = false) {
  $("message").textContent = text;
  $("message").classList.toggle("error", error);
}
