import { GlideClient } from "@valkey/valkey-glide";
import { port, publish } from "./common.mjs";

const client = await GlideClient.createClient({ addresses: [{ host: "127.0.0.1", port }], requestTimeout: 5000 });
await publish((name, key, rest) => client.fcall(name, [key], rest));
