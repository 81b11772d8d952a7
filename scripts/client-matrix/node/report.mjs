// What every program here reports: one JSON object a line, for matrix/member.py.
export const url = process.argv[2];

// Long messages are cut: their beginning and their length tell them apart.
const short = (text) => (text.length > 400 ? `${text.slice(0, 400)}… ${text.length}` : text);

export function report(event, fields = {}) {
  if (typeof fields.data === "string") fields.data = short(fields.data);
  process.stdout.write(JSON.stringify({ event, ...fields }) + "\n");
}

/** Reports a message of a WebSocket. */
export function frame(data) {
  if (typeof data === "string") report("message", { data });
  else report("binary", { data: Buffer.from(data).toString("base64") });
}
