const client = new Centrifuge(url);
const subscription = client.newSubscription("live");
subscription.on("publication", ({ data }) => {
  try {
    report("message", { data: new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(data) });
  } catch {
    report("binary", { data: base64(data) });
  }
});
client.on("error", ({ error }) => report("error", { detail: `${error.code} ${error.message}` }));
client.on("disconnected", ({ code, reason }) => report("closed", { code, detail: reason }));
subscription.subscribe();
client.connect();
