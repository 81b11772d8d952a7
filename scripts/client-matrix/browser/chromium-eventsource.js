const source = new EventSource(url);
source.onmessage = ({ data, lastEventId }) => report("message", { data, id: lastEventId });
source.onerror = () => report(source.readyState === EventSource.CLOSED ? "closed" : "error");
