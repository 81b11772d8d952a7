// Publishes three messages with a library of Node's: publish.mjs LIBRARY URL plain|key. A line for
// each: a status, or what was raised.
import http from "node:http";

const [, , library, url, mode] = process.argv;
const headers = (number) => (mode === "key" ? { "Idempotency-Key": `message-${number}` } : {});
const agent = new http.Agent({ keepAlive: true });

const libraries = {
  async fetch() {
    return async (number) => {
      const response = await fetch(url, { method: "POST", body: `n${number}`, headers: headers(number) });
      await response.text();
      return response.status;
    };
  },
  async axios() {
    const { default: axios } = await import("axios");
    const options = (number) => ({ headers: headers(number), httpAgent: agent });
    return async (number) => (await axios.post(url, `n${number}`, options(number))).status;
  },
  async got() {
    const { default: got } = await import("got");
    const options = (number) => ({ body: `n${number}`, headers: headers(number), agent: { http: agent } });
    return async (number) => (await got.post(url, options(number))).statusCode;
  },
};
const publish = await libraries[library]();
for (let number = 0; number < 3; number += 1) {
  console.log(await publish(number).catch((error) => `raised ${error.cause?.code ?? error.code ?? error.message}`));
}
process.exit();
