/** The SharedWorker in which the connection of all tabs lives. */
import { Host } from "./livebridge-shared.js";

/** @type {any} */
const scope = globalThis;
const host = new Host(scope.name);
scope.onconnect = (/** @type {MessageEvent} */ { ports: [port] }) => {
  port.onmessage = ({ data: { from, body } }) => host.receive(from, body, (answer) => port.postMessage(answer));
};
