//! The protocol: GET shows, PUT sets, DELETE sets off. One request a connection, each on a thread of its own, so that
//! a point that sleeps can be set off.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use crate::points::{NAMES, known, set, set_all, status, unset};

/// Nobody sends more, or waits longer.
const REQUEST_BYTES_MAX: u64 = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn listen(address: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    std::thread::Builder::new().name("failpoints".into()).spawn(move || {
        for socket in listener.incoming().flatten() {
            let serve = || {
                // A client that went away needs no answer.
                let _ = serve(socket);
            };
            let _ = std::thread::Builder::new().name("failpoints".into()).spawn(serve);
        }
    })?;
    Ok(())
}

fn serve(socket: TcpStream) -> io::Result<()> {
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(socket.try_clone()?.take(REQUEST_BYTES_MAX));
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (mut len, mut expects) = (0, false);
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
            break;
        }
        let (name, value) = header.split_once(':').unwrap_or((&header, ""));
        if name.eq_ignore_ascii_case("content-length") {
            len = value.trim().parse().unwrap_or(0);
        }
        expects |= name.eq_ignore_ascii_case("expect");
    }
    if expects {
        (&socket).write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let mut body = Vec::new();
    reader.take(len).read_to_end(&mut body)?;
    let (code, text) = answer(method, path, &String::from_utf8_lossy(&body));
    let reason = match code {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        404 => "Not Found",
        _ => "Method Not Allowed",
    };
    let allow = if code == 405 { "Allow: DELETE, GET, PUT\r\n" } else { "" };
    let length = if code == 204 { String::new() } else { format!("Content-Length: {}\r\n", text.len()) };
    let head = format!(
        "HTTP/1.1 {code} {reason}\r\n{allow}Content-Type: text/plain; charset=utf-8\r\n{length}Connection: close\r\n\r\n"
    );
    (&socket).write_all((head + &text).as_bytes())
}

/// Status and text.
fn answer(method: &str, path: &str, body: &str) -> (u16, String) {
    let Some(key) = path.strip_prefix('/') else { return (400, "malformed request URI\n".to_owned()) };
    let missing = || (404, format!("failpoint: {key:?} does not exist\n"));
    let done = |outcome: Result<(), String>| match outcome {
        Ok(()) => (204, String::new()),
        Err(error) => (400, format!("fail to set failpoint: {error}\n")),
    };
    match method {
        "GET" if key.is_empty() => {
            (200, NAMES.iter().map(|name| format!("{name}={}\n", status(name).0)).collect())
        }
        "GET" => match (known(key), key.strip_suffix("/count").and_then(known)) {
            (Some(name), _) => (200, format!("{}\n", status(name).0)),
            (None, Some(name)) => (200, status(name).1.to_string()),
            (None, None) => missing(),
        },
        "PUT" if key.eq_ignore_ascii_case("failpoints") => done(set_all(body)),
        "PUT" => known(key).map_or_else(missing, |name| done(set(name, body))),
        "DELETE" => known(key).map_or_else(missing, |name| {
            unset(name);
            (204, String::new())
        }),
        _ => (405, "Method not allowed\n".to_owned()),
    }
}
