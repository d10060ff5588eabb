use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::json;
use tokio::sync::mpsc;

use super::server::Limits;
use super::*;

const SHORT: Limits = Limits {
    connections: 8,
    request: Duration::from_secs(1),
    write: Duration::from_millis(300),
    keepalive: Duration::from_millis(100),
};

/// A served socket, in a thread of its own.
struct Daemon {
    dir: tempfile::TempDir,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    ended: Arc<AtomicUsize>,
    stream: Kept,
}

impl Daemon {
    fn start(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::bind(&dir.path().join("control.sock")).unwrap().with_limits(limits);
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let ended = Arc::new(AtomicUsize::new(0));
        let stream = Arc::new(Mutex::new(None));
        let (count, kept) = (Arc::clone(&ended), Arc::clone(&stream));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let serve = server.serve(move |request| answer(request, Arc::clone(&count), Arc::clone(&kept)));
                tokio::select! { _ = serve => unreachable!(), _ = stopped => {} }
            });
        });
        Self { dir, stop: Some(stop), thread: Some(thread), ended, stream }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    fn call(&self, request: Value) -> Result<Value, ControlError> {
        Client::call(&self.path(), &request)
    }

    fn connect(&self) -> UnixStream {
        let socket = UnixStream::connect(self.path()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket
    }

    fn works(&self) {
        assert_eq!(self.call(json!({"echo": [1, "ä\n"]})).unwrap(), json!([1, "ä\n"]));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
        assert!(!self.path().exists(), "it takes its socket with it");
    }
}

type Kept = Arc<Mutex<Option<mpsc::Sender<Result<Value, Refusal>>>>>;

async fn answer(request: Request, ended: Arc<AtomicUsize>, kept: Kept) -> Result<Reply, Refusal> {
    assert_eq!(request.uid, rustix::process::geteuid().as_raw());
    let body = request.body;
    if let Some(echo) = body.get("echo") {
        return Ok(Reply::Value(echo.clone()));
    }
    if let Some(ms) = body.get("sleep").and_then(Value::as_u64) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        ended.fetch_add(1, Ordering::SeqCst);
        return Ok(Reply::Value(json!("slept")));
    }
    if let Some(bytes) = body.get("bytes").and_then(Value::as_u64) {
        return Ok(Reply::Value(json!("x".repeat(bytes as usize))));
    }
    if let Some(n) = body.get("count").and_then(Value::as_u64) {
        let (sender, values) = mpsc::channel(1);
        tokio::spawn(async move {
            for i in 0..n {
                drop(sender.send(Ok(json!(i))).await);
            }
        });
        return Ok(Reply::Stream(values));
    }
    if body.get("keep").is_some() {
        let (sender, values) = mpsc::channel(1000);
        *kept.lock().unwrap() = Some(sender);
        return Ok(Reply::Stream(values));
    }
    assert!(body.get("panic").is_none(), "as asked");
    Err(Refusal::new(Exit::NoInput, "no such bundle"))
}

fn rest(mut socket: UnixStream) -> String {
    let mut bytes = Vec::new();
    match socket.read_to_end(&mut bytes) {
        // The daemon did not read all that it was sent.
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => panic!("{error}"),
        _ => String::from_utf8(bytes).unwrap(),
    }
}

#[test]
fn answers_and_refuses() {
    let daemon = Daemon::start(Limits::default());
    daemon.works();
    assert_eq!(std::fs::metadata(daemon.path()).unwrap().permissions().mode() & 0o777, 0o660);
    let refused = daemon.call(json!({})).unwrap_err();
    assert_eq!((refused.exit(), refused.to_string().as_str()), (Exit::NoInput, "no such bundle"));
    assert_eq!(daemon.call(json!({"panic": 1})).unwrap_err().exit(), Exit::TempFail);
    let counted: Vec<_> = Client::stream(&daemon.path(), &json!({"count": 100})).unwrap().map(Result::unwrap).collect();
    assert_eq!(counted, (0..100).map(|i| json!(i)).collect::<Vec<_>>());
    assert!(matches!(daemon.call(json!({"count": 0})), Err(ControlError::Closed { .. })));
    assert_eq!(daemon.call(json!({"bytes": 20 << 20})).unwrap().as_str().unwrap().len(), 20 << 20);
    daemon.works();
}

#[test]
fn a_slow_answer_and_a_quiet_stream_stay_connected() {
    let daemon = Daemon::start(SHORT);
    let slept = daemon.connect();
    (&slept).write_all(b"{\"sleep\": 1000}\n").unwrap();
    let text = rest(slept);
    assert!(text.starts_with("\n\n") && text.ends_with("{\"value\":\"slept\"}\n{\"end\":true}\n"), "{text}");
    assert_eq!(daemon.call(json!({"sleep": 1000})).unwrap(), json!("slept"));

    let mut stream = Client::stream(&daemon.path(), &json!({"keep": 1})).unwrap();
    while daemon.stream.lock().unwrap().is_none() {
        std::thread::yield_now();
    }
    std::thread::sleep(Duration::from_millis(500));
    let sender = daemon.stream.lock().unwrap().take().unwrap();
    sender.blocking_send(Ok(json!(1))).unwrap();
    assert_eq!(stream.next().unwrap().unwrap(), json!(1));
    sender.blocking_send(Err(Refusal::new(Exit::DataErr, "failed"))).unwrap();
    assert_eq!(stream.next().unwrap().unwrap_err().exit(), Exit::DataErr);
    assert!(stream.next().is_none());
}

#[test]
fn a_stream_learns_that_its_client_has_gone() {
    let daemon = Daemon::start(SHORT);
    let stream = Client::stream(&daemon.path(), &json!({"keep": 1})).unwrap();
    while daemon.stream.lock().unwrap().is_none() {
        std::thread::yield_now();
    }
    let sender = daemon.stream.lock().unwrap().take().unwrap();
    assert!(!sender.is_closed());
    drop(stream);
    let since = Instant::now();
    while !sender.is_closed() {
        assert!(since.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_handler_ends_what_it_began_without_its_client() {
    let daemon = Daemon::start(SHORT);
    (&daemon.connect()).write_all(b"{\"sleep\": 400}\n").unwrap();
    let since = Instant::now();
    while daemon.ended.load(Ordering::SeqCst) == 0 {
        assert!(since.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The daemon has answered and closed while the client is in the middle of its question.
#[test]
fn a_client_cut_short_reads_why() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let daemon = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        socket.read_exact(&mut [0; 10]).unwrap();
        // By now the client waits for room to write more.
        std::thread::sleep(Duration::from_millis(100));
        let refusal = Line::Error(Refusal::new(Exit::Protocol, "too long"));
        socket.write_all(&serde_json::to_vec(&refusal).unwrap()).unwrap();
        socket.write_all(b"\n").unwrap();
    });
    // In small parts, so that it waits before one, not amid one: then the system says ECONNRESET, else EPIPE.
    let error = Client::call(&path, &json!(vec!["x"; 100_000])).unwrap_err();
    assert_eq!(error.exit(), Exit::Protocol, "{error}");
    daemon.join().unwrap();
}

#[test]
fn hostile_clients_do_not_hurt() {
    let daemon = Daemon::start(SHORT);
    // A line without end is refused at the limit, not read to memory's end.
    let huge = daemon.connect();
    let mut sent = 0;
    while (&huge).write_all(&[b'x'; 65_536]).is_ok() {
        sent += 65_536;
        assert!(sent < 3 * MAX_REQUEST, "nobody stops it");
    }
    assert!(rest(huge).contains("longer than 1 MiB"));
    let error = daemon.call(json!("x".repeat(MAX_REQUEST + 1))).unwrap_err();
    assert_eq!(error.exit(), Exit::Protocol, "{error}");
    assert!(daemon.call(json!({"echo": "x".repeat(MAX_REQUEST - 20)})).is_ok());

    // No line feed, not even a byte; one byte now and then does not buy time.
    let silent = daemon.connect();
    let half = daemon.connect();
    (&half).write_all(b"{\"echo\"").unwrap();
    let drip = daemon.connect();
    let since = Instant::now();
    while (&drip).write_all(b" ").is_ok() {
        assert!(since.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(20));
    }
    for socket in [silent, half] {
        assert!(rest(socket).contains("no whole request came in time"));
    }
    // Half closed: the end of its side ends the line.
    let closed = daemon.connect();
    (&closed).write_all(b"{\"echo\": 5}").unwrap();
    closed.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(rest(closed), "{\"value\":5}\n{\"end\":true}\n");
    let empty = daemon.connect();
    empty.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(rest(empty).contains("not a line of JSON"));

    // Garbage, and nesting that would overflow a stack.
    for garbage in [&b"\xff\xfe\x00\n"[..], b"{]\n", "[".repeat(500_000).as_bytes()] {
        let socket = daemon.connect();
        (&socket).write_all(garbage).unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(rest(socket).contains("not a line of JSON"));
    }

    // One that asks for much and reads nothing is let go.
    let deaf = daemon.connect();
    (&deaf).write_all(b"{\"bytes\": 50000000}\n").unwrap();
    // Long enough for a daemon that others keep from the processor.
    std::thread::sleep(Duration::from_secs(3));
    let mut got = Vec::new();
    drop((&deaf).read_to_end(&mut got));
    assert!(got.len() < 5_000_000, "{}", got.len());
    daemon.works();
}

#[test]
fn a_hundred_connections_are_turned_away_but_for_a_few() {
    let daemon = Daemon::start(SHORT);
    let all: Vec<_> = (0..100).map(|_| daemon.connect()).collect();
    let since = Instant::now();
    let turned_away = all.into_iter().map(rest).filter(|text| text.contains("too many control connections")).count();
    assert_eq!(turned_away, 92);
    assert!(since.elapsed() < Duration::from_secs(5));
    daemon.works();
    // Gone at once, in great numbers.
    for _ in 0..500 {
        drop(daemon.connect());
    }
    let since = Instant::now();
    while daemon.call(json!({"echo": 1})).is_err() {
        assert!(since.elapsed() < Duration::from_secs(5));
    }
    daemon.works();
}

#[test]
fn binding_replaces_the_dead_and_spares_the_living() {
    let daemon = Daemon::start(SHORT);
    assert!(matches!(Server::bind(&daemon.path()), Err(BindError::Running { .. })));
    daemon.works();

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a dead daemon leaves its socket");
    assert!(matches!(Client::call(&path, &json!(1)), Err(ControlError::NotRunning { .. })));
    let server = Server::bind(&path).unwrap();
    drop(server);
    assert!(!path.exists());

    let _foreign = UnixListener::bind(&path).unwrap();
    assert!(matches!(Server::bind(&path), Err(BindError::Running { .. })), "no daemon of ours, but alive");
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(Server::bind(&path), Err(BindError::NotASocket { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    assert!(matches!(Server::bind(Path::new(&"/x".repeat(100))), Err(BindError::TooLong { .. })));
    assert!(matches!(Server::bind(&dir.path().join("none/control")), Err(BindError::Io { .. })));
}

#[test]
fn a_socket_that_was_removed_is_made_again() {
    let daemon = Daemon::start(SHORT);
    for _ in 0..2 {
        std::fs::remove_file(daemon.path()).unwrap();
        assert!(matches!(Client::call(&daemon.path(), &json!(1)), Err(ControlError::NotRunning { .. })));
        let patience = std::time::Instant::now() + Duration::from_secs(20);
        while !daemon.path().exists() && std::time::Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(100)); // it listens a moment later
        daemon.works();
    }
}

#[test]
fn a_server_removes_only_its_own_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    let server = Server::bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    drop(server);
    assert!(path.exists());
}

#[test]
fn the_client_tells_what_is_wrong_with_the_other_side() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let error = Client::call(&path, &json!(1)).unwrap_err();
    assert_eq!(error.exit(), Exit::Unavailable);
    assert!(error.to_string().contains("the daemon is not running; start it"));
    let listener = UnixListener::bind(&path).unwrap();
    for (answer, exit) in [
        ("", Exit::TempFail),
        ("{\"value\": 1", Exit::TempFail),
        ("\n\n", Exit::TempFail),
        ("HTTP/1.1 400 Bad Request\r\n", Exit::Protocol),
        ("{\"value\": 1, \"end\": true}\n", Exit::Protocol),
        ("{\"error\": {\"exit\": 3, \"text\": \"x\"}}\n", Exit::Protocol),
    ] {
        let asked = std::thread::spawn({
            let path = path.clone();
            move || Client::call(&path, &json!(1))
        });
        let (mut socket, _) = listener.accept().unwrap();
        socket.read_exact(&mut [0; 2]).unwrap();
        socket.write_all(answer.as_bytes()).unwrap();
        drop(socket);
        let error = asked.join().unwrap().unwrap_err();
        assert_eq!(error.exit(), exit, "{answer}: {error}");
    }
}
