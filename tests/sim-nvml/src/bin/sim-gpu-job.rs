//! A process that "uses" a simulated GPU: it registers itself and waits until its time is over.
//!
//! ```text
//! sim-gpu-job --socket PATH [--gpu N] [--share S] [--memory-bytes N] [--duration-ms N]
//!             [--kind compute|graphics|mps] [--memory-share S] [--label NAME]
//! ```
//!
//! It runs in bare containers, hence nothing but std (and `signal`, which std lacks): it must start
//! in a millisecond and need no file but itself and libc. Exit codes: 0 done, 1 refused or the
//! server went away, 2 wrong arguments. SIGTERM ends it also when it is process 1 of a container,
//! where the kernel ignores signals without a handler.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

extern "C" fn leave(signal: libc::c_int) {
    // SAFETY: `_exit` is async-signal-safe.
    unsafe { libc::_exit(128 + signal) }
}

fn main() -> ExitCode {
    let handler: extern "C" fn(libc::c_int) = leave;
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: the handler has the signature that `signal` wants and only calls `_exit`.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
    let (socket, request) = match parse(std::env::args().skip(1)) {
        Ok(parsed) => parsed,
        Err(message) => {
            eprintln!("sim-gpu-job: {message}");
            return ExitCode::from(2);
        }
    };
    match run(&socket, &request) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("sim-gpu-job: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The socket's path and the request line.
fn parse(mut arguments: impl Iterator<Item = String>) -> Result<(String, String), String> {
    let mut socket = None;
    let mut fields = Vec::new();
    while let Some(flag) = arguments.next() {
        let value = arguments
            .next()
            .ok_or_else(|| format!("{flag} wants a value"))?;
        let number = || {
            value
                .parse::<u64>()
                .map_err(|_| format!("{flag}: expected a whole number, found {value:?}"))
        };
        let share = || match value.parse::<f64>() {
            Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
            _ => Err(format!("{flag}: expected 0 to 1, found {value:?}")),
        };
        let name = || match value
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_./:@".contains(c))
        {
            true => Ok(&value),
            false => Err(format!(
                "{flag}: expected letters, digits and -_./:@, found {value:?}"
            )),
        };
        match flag.as_str() {
            "--socket" => socket = Some(value),
            "--gpu" => fields.push(format!("\"gpu\":{}", number()?)),
            "--share" => fields.push(format!("\"share\":{}", share()?)),
            "--memory-bytes" => fields.push(format!("\"memory_bytes\":{}", number()?)),
            "--duration-ms" => fields.push(format!("\"duration_ms\":{}", number()?)),
            "--memory-share" => fields.push(format!("\"engines\":{{\"memory\":{}}}", share()?)),
            "--kind" => fields.push(format!("\"kind\":\"{}\"", name()?)),
            "--label" => fields.push(format!("\"label\":\"{}\"", name()?)),
            _ => return Err(format!("unknown argument {flag:?}")),
        }
    }
    Ok((
        socket.ok_or("--socket is missing")?,
        format!("{{{}}}\n", fields.join(",")),
    ))
}

fn run(socket: &str, request: &str) -> Result<(), String> {
    let mut stream = UnixStream::connect(socket)
        .map_err(|error| format!("cannot connect to {socket}: {error}"))?;
    stream
        .write_all(request.as_bytes())
        .map_err(|error| format!("cannot register: {error}"))?;
    let mut answers = BufReader::new(stream).lines();
    for expected in ["ok", "done"] {
        match answers.next() {
            Some(Ok(answer)) if answer == expected => {}
            Some(Ok(answer)) => return Err(format!("expected {expected:?}, found {answer:?}")),
            Some(Err(error)) => return Err(format!("waiting for {expected:?}: {error}")),
            None => return Err(format!("waiting for {expected:?}: the server went away")),
        }
    }
    Ok(())
}
