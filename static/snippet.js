/** Copies text; `navigator.clipboard` exists in secure contexts only, the old command elsewhere too. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "sr-only";
    const before = document.activeElement;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    before?.focus();
    return done;
  }
}

/** Makes `button` copy what `text()` gives, and say so on itself for a moment. */
export function copyButton(button, text) {
  const label = button.textContent;
  let timer;
  button.addEventListener("click", async () => {
    button.textContent = (await copy(text())) ? "Copied" : "Not allowed";
    clearTimeout(timer);
    timer = setTimeout(() => (button.textContent = label), 1500);
  });
}

/** The one-liner that publishes `body`, safe to paste into a shell. */
export function curlLine(body, channel, more = "") {
  const name = encodeURIComponent(channel).replaceAll("%3A", ":").replaceAll("'", "%27");
  const address = new URL(`publish?channel=${name}${more}`, document.baseURI);
  const option = String(body).startsWith("@") ? "--data-raw" : "-d"; // -d @name would send a file
  return `curl ${option} '${String(body).replaceAll("'", "'\\''")}' '${address.href}'`;
}
