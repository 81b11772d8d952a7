const socket = new WebSocket(url);
socket.binaryType = "arraybuffer";
socket.onmessage = ({ data }) => frame(data);
socket.onclose = ({ code, reason }) => report("closed", { code, detail: reason });
