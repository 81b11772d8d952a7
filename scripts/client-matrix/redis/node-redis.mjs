import { createClient } from "redis";
import { port, publish } from "./common.mjs";

const client = createClient({ url: `redis://127.0.0.1:${port}` });
client.on("error", () => {});
await client.connect();
await publish((name, key, rest) => client.sendCommand(["FCALL", name, "1", key, ...rest]));
