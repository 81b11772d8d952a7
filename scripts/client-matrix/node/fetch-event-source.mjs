import { report, url } from "./report.mjs";

// It is made for browsers, and looks for these at its start.
globalThis.window = globalThis;
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
const { fetchEventSource } = await import("@microsoft/fetch-event-source");

fetchEventSource(url, {
  onmessage: ({ event, data, id }) => report("message", { type: event, data, id }),
  onclose: () => report("error", { detail: "ended" }),
}).then(
  () => report("closed", { detail: "resolved" }),
  (error) => report("closed", { detail: String(error) }),
);
