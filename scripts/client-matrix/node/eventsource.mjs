import { EventSource } from "eventsource";
import { report, url } from "./report.mjs";

const source = new EventSource(url);
source.onmessage = ({ data, lastEventId }) => report("message", { data, id: lastEventId });
source.onerror = ({ code, message }) => {
  const event = source.readyState === EventSource.CLOSED ? "closed" : "error";
  report(event, { detail: `${code} ${message}` });
};
