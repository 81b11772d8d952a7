import { createEventSource } from "eventsource-client";
import { report, url } from "./report.mjs";

createEventSource({
  url,
  onMessage: ({ event, data, id }) => report("message", { type: event, data, id }),
  onDisconnect: () => report("error"),
});
