//! Connections by hand: from an address of choice (all of 127/8 is this machine), with any bytes.

use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::MaybeTlsStream;
use tungstenite::client::IntoClientRequest;
use tungstenite::http::{HeaderName, HeaderValue};

use super::instance::Instance;
use super::soon;
use super::ws::Socket;

pub const HANDSHAKE: &str = "Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";

/// Connects from an address.
pub async fn connect_from(source: &str, instance: &Instance) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(source.parse::<IpAddr>().unwrap(), 0)).unwrap();
    soon("a connection", socket.connect(instance.address.parse().unwrap())).await.unwrap()
}

/// With a receive buffer so small that it is full at once.
pub async fn connect_narrow(instance: &Instance) -> TcpStream {
    connect_narrow_from("127.0.0.1", instance).await
}

/// A WebSocket that takes little at a time, after its handshake.
pub async fn upgrade_narrow(instance: &Instance, path: &str) -> TcpStream {
    let mut stream = connect_narrow(instance).await;
    stream.write_all(format!("GET {path} HTTP/1.1\r\n{HANDSHAKE}").as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon("the head", stream.read_u8()).await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    stream
}

/// Like [`connect_narrow`], from an address.
pub async fn connect_narrow_from(source: &str, instance: &Instance) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(source.parse::<IpAddr>().unwrap(), 0)).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(instance.address.parse().unwrap()).await.unwrap()
}

/// What came until the end of the connection, a reset included.
pub async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = soon("the end of a connection", stream.read_to_end(&mut bytes)).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Sends bytes and takes the whole answer.
pub async fn answer(source: &str, instance: &Instance, request: &[u8]) -> String {
    let mut stream = connect_from(source, instance).await;
    // Who is refused at the door may have been hung up on by now.
    let _ = stream.write_all(request).await;
    rest(&mut stream).await
}

/// Asks for a path, with further header lines.
pub async fn get(source: &str, instance: &Instance, path: &str, lines: &str) -> String {
    answer(source, instance, format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{lines}\r\n").as_bytes())
        .await
}

/// A WebSocket from an address, or the response that was given instead.
pub async fn websocket(
    source: &str,
    instance: &Instance,
    query: &str,
    lines: &[(&'static str, &str)],
) -> Result<Socket, (u16, String)> {
    let mut request = format!("ws://{}/ws?{query}", instance.address).into_client_request().unwrap();
    for (name, value) in lines {
        request.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
    }
    let stream = MaybeTlsStream::Plain(connect_from(source, instance).await);
    match soon("a handshake", tokio_tungstenite::client_async(request, stream)).await {
        Ok((stream, _)) => Ok(Socket(stream)),
        Err(tungstenite::Error::Http(response)) => {
            let body = response.body().clone().unwrap_or_default();
            Err((response.status().as_u16(), String::from_utf8(body).unwrap()))
        }
        Err(other) => panic!("{other}"),
    }
}
