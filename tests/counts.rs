//! What a connection and a delivery cost, in allocations: counted and not timed, so that it can't be noise. A program of
//! its own, since the count is of everything that happens in the process.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that fails should panic, and tell what it counted"
)]

use std::alloc::System;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use clap::Parser;
use livebridge::config::{Cli, Settings};
use livebridge::server::Server;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// One test at a time: they share the counts.
static TURN: Mutex<()> = Mutex::new(());

/// The servers of earlier tests.
static EARLIER: Mutex<Vec<SocketAddr>> = Mutex::new(Vec::new());

/// A server in this process, on the embedded broker. Ends with the process. Connections of earlier tests have
/// ended: what that frees and allocates would count.
fn serve() -> SocketAddr {
    let mut earlier = EARLIER.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !earlier.is_empty() {
        // The number of connections is sampled every second.
        std::thread::park_timeout(Duration::from_millis(1200));
        earlier.iter().for_each(|address| until_nobody_is_connected(*address));
    }
    let (sender, address) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let cli = Cli::parse_from(["livebridge", "--listen", "127.0.0.1:0", "--threads", "1"]);
            let server = Server::start(Settings::resolve(cli.serve).unwrap()).unwrap();
            sender.send(server.address).unwrap();
            server.run_until(std::future::pending()).await;
        });
    });
    let address = address.recv().unwrap();
    earlier.push(address);
    address
}

/// Connects, sends a request, and reads until the answer's last bytes.
fn ask(address: SocketAddr, request: &str, last: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    read_until(&mut stream, last);
    stream
}

fn read_until(stream: &mut TcpStream, last: &[u8]) {
    let mut buffer = [0; 4096];
    let mut length = 0;
    while !buffer[..length].ends_with(last) {
        let read = stream.read(&mut buffer[length..]).unwrap();
        assert!(read > 0, "the server closed: {:?}", String::from_utf8_lossy(&buffer[..length]));
        length += read;
    }
}

fn websocket(address: SocketAddr) -> TcpStream {
    let request = "GET /ws?channel=counted HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    ask(address, request, b"\r\n\r\n")
}

/// A client of the Centrifuge protocol that is subscribed to so many channels.
fn sdk(address: SocketAddr, channels: usize) -> TcpStream {
    let request = "GET /connection/websocket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let mut stream = ask(address, request, b"\r\n\r\n");
    command(&mut stream, r#"{"id":1,"connect":{}}"#, b"}}");
    for index in 0..channels {
        let name = if index == 0 { "counted".to_owned() } else { format!("counted:{index}") };
        command(&mut stream, &format!(r#"{{"id":2,"subscribe":{{"channel":"{name}"}}}}"#), b"}}");
    }
    stream
}

/// The same in the Protobuf form, on one channel.
fn protobuf_sdk(address: SocketAddr) -> TcpStream {
    let request = "GET /connection/websocket?format=protobuf HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n\
                   Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let mut stream = ask(address, request, b"\r\n\r\n");
    // The commands `connect` and `subscribe` with the ids 1 and 2, and the length before each.
    for command in [&b"\x04\x08\x01\x22\x00"[..], b"\x0d\x08\x02\x2a\x09\x0a\x07counted"] {
        let length = u8::try_from(command.len()).unwrap();
        stream.write_all(&[&[0x82, 0x80 | length, 0, 0, 0, 0], command].concat()).unwrap();
        read_frame(&mut stream);
    }
    stream
}

/// Reads a small frame.
fn read_frame(stream: &mut TcpStream) {
    let mut frame = [0; 127];
    stream.read_exact(&mut frame[..2]).unwrap();
    let length = usize::from(frame[1]);
    assert!(length < 126, "a small frame");
    stream.read_exact(&mut frame[2..2 + length]).unwrap();
}

/// Sends a command, and reads until the answer's last bytes.
fn command(stream: &mut TcpStream, text: &str, last: &[u8]) {
    let length = u8::try_from(text.len()).unwrap();
    assert!(length < 126);
    // Masked with zeros.
    stream.write_all(&[&[0x81, 0x80 | length, 0, 0, 0, 0], text.as_bytes()].concat()).unwrap();
    read_until(stream, last);
}

fn events(address: SocketAddr) -> TcpStream {
    ask(address, "GET /events?channel=counted HTTP/1.1\r\nHost: x\r\n\r\n", b"\n\n\r\n")
}

/// Waits until a server has no connections.
fn until_nobody_is_connected(address: SocketAddr) {
    loop {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        if text.lines().filter(|line| line.starts_with("livebridge_connections{")).all(|line| line.ends_with(" 0")) {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// The least of three counts. Every five seconds each thread of a server makes ten thousand allocations, by which
/// the allocator gives memory back (src/allocator.rs); one count at most has them.
fn least(mut count: impl FnMut() -> usize) -> usize {
    (0..3).map(|_| count()).min().unwrap()
}

/// Bytes that the process holds more after `count` more connections, for each.
fn bytes_each(connect: impl Fn() -> TcpStream, count: usize) -> isize {
    let mut streams = Vec::with_capacity(2 * count);
    // The first ones pay for what is allocated once; tables then double where they are full.
    streams.extend((0..count).map(|_| connect()));
    let region = Region::new(ALLOCATOR);
    streams.extend((0..count).map(|_| connect()));
    let change = region.change();
    (change.bytes_allocated as isize - change.bytes_deallocated as isize) / count as isize
}

#[test]
fn an_idle_connection_holds_little_memory() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let address = serve();
    let (websocket, events) = (bytes_each(|| websocket(address), 1000), bytes_each(|| events(address), 1000));
    println!("bytes of an idle connection: WebSocket {websocket}, Server-Sent Events {events}");
    assert!(websocket < 1536 && events < 1536, "WebSocket {websocket}, Server-Sent Events {events}");
}

#[test]
fn an_idle_sdk_connection_holds_little_more_and_each_further_channel_little() {
    const MORE: usize = 60;
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let address = serve();
    // The channels exist: they cost memory of their own.
    let _holder = sdk(address, 1 + MORE);
    let raw = bytes_each(|| websocket(address), 500);
    let (one, many) = (bytes_each(|| sdk(address, 1), 500), bytes_each(|| sdk(address, 1 + MORE), 100));
    let each = (many - one) / MORE as isize;
    println!("bytes of an idle connection: raw {raw}, SDK {one}, and {each} for each further channel");
    assert!(one * 2 <= raw * 3, "raw {raw}, SDK {one}");
    assert!(each <= 300, "{each} for each further channel");
}

#[test]
fn a_delivery_allocates_nothing() {
    deliveries_allocate_nothing(websocket, |stream| read_until(stream, b"message"));
}

#[test]
fn a_delivery_to_an_sdk_allocates_nothing() {
    deliveries_allocate_nothing(|address| sdk(address, 1), |stream| read_until(stream, b"}}}"));
}

#[test]
fn a_delivery_to_an_sdk_that_speaks_protobuf_allocates_nothing() {
    deliveries_allocate_nothing(protobuf_sdk, read_frame);
}

/// Publishes to subscribers, each of which reads each message.
fn deliveries_allocate_nothing(connect: impl Fn(SocketAddr) -> TcpStream, read: impl Fn(&mut TcpStream)) {
    const MESSAGES: usize = 200;
    const MORE: usize = 200;
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let address = serve();
    let request = "POST /publish?channel=counted HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\n\r\nmessage";
    // The first message of a channel begins its epoch, which ends the subscriptions of SDKs.
    let mut publisher = ask(address, request, b"]}\n");
    let mut subscribers = Vec::with_capacity(MORE + 10);
    let mut allocations = |subscribers: &mut Vec<TcpStream>| {
        let region = Region::new(ALLOCATOR);
        for _ in 0..MESSAGES {
            publisher.write_all(request.as_bytes()).unwrap();
            read_until(&mut publisher, b"]}\n");
            subscribers.iter_mut().for_each(&read);
        }
        region.change().allocations
    };
    subscribers.extend((0..10).map(|_| connect(address)));
    allocations(&mut subscribers);
    let few = least(|| allocations(&mut subscribers));
    subscribers.extend((0..MORE).map(|_| connect(address)));
    let many = least(|| allocations(&mut subscribers));
    let each = many.saturating_sub(few) as f64 / (MESSAGES * MORE) as f64;
    println!("allocations: {} for a message, {each} for a delivery", few / MESSAGES);
    assert!(each < 0.01, "{each} allocations for a delivery");
}

#[test]
fn a_handshake_and_its_close_allocate_little() {
    const CONNECTIONS: usize = 500;
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let address = serve();
    let come_and_go = || {
        let mut stream = websocket(address);
        stream.write_all(b"\x88\x82\0\0\0\0\x03\xE8").unwrap();
        let mut closed = Vec::with_capacity(64);
        stream.read_to_end(&mut closed).unwrap();
        assert_eq!(closed, b"\x88\x02\x03\xE8");
    };
    (0..CONNECTIONS).for_each(|_| come_and_go());
    let allocations = least(|| {
        let region = Region::new(ALLOCATOR);
        (0..CONNECTIONS).for_each(|_| come_and_go());
        region.change().allocations
    });
    // One is the test's own.
    let each = allocations as f64 / CONNECTIONS as f64 - 1.0;
    println!("allocations of a handshake and its close: {each}");
    assert!(each < 70.0, "{each}");
}
