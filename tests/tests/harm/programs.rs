// SPDX-License-Identifier: Apache-2.0
//! The programs, each with what it does in one run, and what the documentation says may happen to it.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ztunnel_tests::launch::Launch;
use ztunnel_tests::traffic::stream::{self, Sides};
use ztunnel_tests::traffic::{Conn, Pattern, Server};
use ztunnel_tests::{Mesh, Mode, Pod, times, wait};

use crate::table::{Failure, Harm};

const SOON: Duration = Duration::from_secs(10);
/// A run that takes longer hangs. An upload of 64 MiB takes a third of a second on an idle machine.
const LIMIT: Duration = Duration::from_secs(30);
/// The same where a run is a matter of milliseconds.
const SHORT_LIMIT: Duration = Duration::from_secs(8);

/// One run.
pub(crate) type Run<'a> = Box<dyn Fn() -> Result<(), Failure> + 'a>;

/// An application as users have it.
pub(crate) struct Program {
    /// What the table calls it.
    pub(crate) name: &'static str,
    /// What docs/fastpath.md says may happen to it at level `half`.
    half: &'static [Harm],
    /// The same at level `full`.
    full: &'static [Harm],
    /// Starts what its runs need.
    pub(crate) prepare: for<'a> fn(&'a Mesh) -> Result<Run<'a>>,
}

impl Program {
    /// What may happen to it in this mode without failing the test.
    pub(crate) fn documented(&self, mode: Mode) -> &'static [Harm] {
        match mode {
            Mode::Off | Mode::Auto => &[],
            Mode::Half => self.half,
            Mode::Full => self.full,
        }
    }
}

/// All of them.
pub(crate) const ALL: &[Program] = &[
    Program { name: "request/response, C, blocking", half: &[], full: &[], prepare: ask },
    Program { name: "upload of 64 MiB, C", half: &[], full: &[Harm::Eagain], prepare: upload_c },
    Program { name: "upload of 64 MiB, Python", half: &[], full: &[Harm::Eagain], prepare: upload_python },
    Program { name: "upload of 64 MiB, curl", half: &[], full: &[], prepare: upload_curl },
    Program { name: "`MSG_PEEK`, C", half: &[], full: &[], prepare: peek },
    Program { name: "`MSG_WAITALL`, C", half: &[], full: &[Harm::Short], prepare: waitall },
    Program { name: "`FIONREAD`, C", half: &[Harm::Short], full: &[Harm::Short], prepare: fionread },
    Program { name: "proxy that splices, C", half: &[], full: &[Harm::Hang], prepare: splice_c },
    Program { name: "proxy with `io.Copy`, Go", half: &[], full: &[Harm::Hang], prepare: splice_go },
    Program { name: "nginx, a file of 1 MiB", half: &[], full: &[], prepare: nginx_file },
    Program {
        name: "nginx, an upload of 8 MiB",
        half: &[Harm::Hang],
        full: &[Harm::Hang],
        prepare: nginx_upload,
    },
];

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(name)
}

/// Compiles one of `tests/programs`, unless that was done since it last changed.
fn compiled(name: &str, command: &str, args: &[&str]) -> Result<String> {
    let source = source(name);
    let binary = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name.replace('.', "-"));
    let changed = |path: &Path| fs::metadata(path).and_then(|data| data.modified());
    let is_fresh = changed(&binary).is_ok_and(|made| changed(&source).is_ok_and(|changed| changed <= made));
    if !is_fresh {
        let output = Command::new(command).args(args).arg("-o").arg(&binary).arg(&source).output();
        let output = output.with_context(|| format!("start {command}"))?;
        ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(binary.display().to_string())
}

fn sockets() -> Result<String> {
    compiled("sockets.c", "gcc", &["-O2", "-Wall", "-Werror", "-pthread"])
}

/// Runs a client program to its end.
fn finishes(launch: Launch, limit: Duration) -> Result<Vec<u8>, Failure> {
    let fail = |harm, said: String| Failure { harm, said };
    let broken = |error: std::io::Error| fail(Harm::Other, error.to_string());
    let mut child = launch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(broken)?;
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(broken)? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().map_err(broken)?;
            child.wait().map_err(broken)?;
            return Err(fail(Harm::Hang, format!("not finished after {limit:?}")));
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    // What it says fits into a pipe.
    let (mut out, mut said) = (Vec::new(), String::new());
    if let (Some(mut stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) {
        stdout.read_to_end(&mut out).map_err(broken)?;
        stderr.read_to_string(&mut said).map_err(broken)?;
    }
    if status.success() {
        return Ok(out);
    }
    let has = |text: &str| said.contains(text);
    let harm = if has("temporarily unavailable") {
        Harm::Eagain
    } else if has("wrong byte") || has("counted") {
        Harm::WrongByte
    } else if has("MSG_WAITALL gave") || has("FIONREAD says") || has("early end") {
        Harm::Short
    } else {
        Harm::Other
    };
    Err(fail(harm, format!("{status}: {}", said.trim())))
}

/// How an exchange of our own failed.
fn judged(error: &anyhow::Error) -> Failure {
    let said = format!("{error:#}");
    let harm = if said.contains("nothing happened") {
        Harm::Hang
    } else if said.contains("wrong byte") {
        Harm::WrongByte
    } else if said.contains("ended at") {
        Harm::Short
    } else {
        Harm::Other
    };
    Failure { harm, said }
}

fn upload_bytes() -> u64 {
    times("ZTUNNEL_TESTS_UPLOAD_MIB", 64) << 20
}

/// A program of `sockets.c` against an echo server.
fn against_echo<'a>(mesh: &'a Mesh, way: &'static str) -> Result<Run<'a>> {
    let server = Server::echo(mesh.pod("near"), 8080)?;
    let (binary, ip) = (sockets()?, mesh.pod("near").ip4().to_string());
    Ok(Box::new(move || {
        let _running = &server;
        let launch = mesh.pod("client").command(&binary).args([way, &ip, "8080", "20"]);
        finishes(launch, SHORT_LIMIT).map(drop)
    }))
}

fn ask(mesh: &Mesh) -> Result<Run<'_>> {
    against_echo(mesh, "ask")
}

fn peek(mesh: &Mesh) -> Result<Run<'_>> {
    against_echo(mesh, "peek")
}

fn waitall(mesh: &Mesh) -> Result<Run<'_>> {
    against_echo(mesh, "waitall")
}

fn fionread(mesh: &Mesh) -> Result<Run<'_>> {
    against_echo(mesh, "fionread")
}

/// Counts what it gets and answers the count at the end.
fn count(conn: &Conn) -> Result<()> {
    let (mut conn, mut buffer, mut total) = (conn, vec![0; 1 << 16], 0_u64);
    loop {
        match conn.read(&mut buffer)? {
            0 => return Ok(conn.write_all(&total.to_le_bytes())?),
            length => total += length as u64,
        }
    }
}

/// A program that uploads and then blocks for the count.
fn upload<'a>(mesh: &'a Mesh, program: String, first: Option<String>) -> Result<Run<'a>> {
    let server = Server::start(mesh.pod("near"), 8080, |conn| count(&conn))?;
    let (ip, total) = (mesh.pod("near").ip4().to_string(), upload_bytes().to_string());
    let first = first.unwrap_or_else(|| "upload".to_owned());
    Ok(Box::new(move || {
        let _running = &server;
        let launch = mesh.pod("client").command(&program).args([first.as_str(), &ip, "8080", &total]);
        finishes(launch, LIMIT).map(drop)
    }))
}

fn upload_c(mesh: &Mesh) -> Result<Run<'_>> {
    upload(mesh, sockets()?, None)
}

fn upload_python(mesh: &Mesh) -> Result<Run<'_>> {
    upload(mesh, "python3".to_owned(), Some(source("upload.py").display().to_string()))
}

/// One HTTP upload: reads the body by its length and answers with that number.
fn http_upload(conn: &Conn) -> Result<()> {
    let mut reader = BufReader::new(conn);
    let mut length = 0;
    loop {
        let mut line = String::new();
        ensure!(reader.read_line(&mut line)? > 0, "an early end of the headers");
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let copied = std::io::copy(&mut reader.take(length), &mut std::io::sink())?;
    let body = copied.to_string();
    let mut writer = conn;
    write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())?;
    Ok(())
}

/// curl sends a file of so many bytes to `port`; the answer is how many came.
fn curl_upload(
    mesh: &Mesh,
    port: u16,
    bytes: u64,
    limit: Duration,
) -> Result<impl Fn() -> Result<(), Failure> + '_> {
    let file = mesh.dir().join("upload");
    fs::File::create(&file)?.set_len(bytes)?;
    let url = format!("http://{}:{port}/", mesh.pod("near").ip4());
    Ok(move || {
        let curl =
            mesh.pod("client").command("curl").args(["-sS", "-H", "Expect:", "-T"]).arg(&file).arg(&url);
        let answer = finishes(curl, limit)?;
        if answer == bytes.to_string().as_bytes() {
            return Ok(());
        }
        let said = format!("the answer to curl: {}", String::from_utf8_lossy(&answer));
        Err(Failure { harm: Harm::WrongByte, said })
    })
}

fn upload_curl(mesh: &Mesh) -> Result<Run<'_>> {
    let server = Server::start(mesh.pod("near"), 8080, |conn| http_upload(&conn))?;
    let run = curl_upload(mesh, 8080, upload_bytes(), LIMIT)?;
    Ok(Box::new(move || {
        let _running = &server;
        run()
    }))
}

/// A program that serves until it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap_or_default();
        drop(self.0.wait());
    }
}

/// Starts a program in a pod and waits until it listens.
fn serve(pod: &Pod, launch: Launch, port: u16) -> Result<Running> {
    let running = Running(launch.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    let is_listening = || pod.connect(([127, 0, 0, 1], port).into()).is_ok();
    wait::until("the program to listen", SOON, is_listening)?;
    Ok(running)
}

/// Questions and answers through a proxy in the pod, then a stream both ways. The proxy has nothing to read between two
/// questions, so that each may take another path than the one before.
fn through<'a>(mesh: &'a Mesh, program: &str, args: [&str; 3]) -> Result<Run<'a>> {
    const STREAM: Sides = Sides { send: (Pattern(41), 1 << 20), expect: (Pattern(42), 1 << 20 | 1) };
    const QUESTION: Sides = Sides { send: (Pattern(43), 1000), expect: (Pattern(44), 1001) };
    const QUESTIONS: usize = 10;
    let near = mesh.pod("near");
    let server = Server::start(near, 8080, |conn| {
        for _ in 0..QUESTIONS {
            stream::receive(&conn, QUESTION.send)?;
            stream::send(&conn, QUESTION.expect)?;
        }
        stream::duplex(&conn, STREAM.reversed())
    })?;
    let args = args.into_iter().filter(|arg| !arg.is_empty());
    let proxy = serve(near, near.command(program).args(args), 9000)?;
    Ok(Box::new(move || {
        let _running = (&server, &proxy);
        let conn = mesh.pod("client").dial(near.addr(9000)).map_err(|error| judged(&error.into()))?;
        let conn = conn.patience(SHORT_LIMIT);
        let exchange = || {
            for _ in 0..QUESTIONS {
                stream::send(&conn, QUESTION.send)?;
                stream::receive(&conn, QUESTION.expect)?;
            }
            stream::duplex(&conn, STREAM)
        };
        exchange().map_err(|error| judged(&error))
    }))
}

fn splice_c(mesh: &Mesh) -> Result<Run<'_>> {
    through(mesh, &sockets()?, ["splice", "9000", "8080"])
}

fn splice_go(mesh: &Mesh) -> Result<Run<'_>> {
    through(mesh, &compiled("proxy.go", "go", &["build"])?, [":9000", "127.0.0.1:8080", ""])
}

/// nginx in the pod `near`: files at 8090, a proxy to port 8080 at 8091.
fn nginx(mesh: &Mesh) -> Result<Running> {
    let folder = mesh.dir().join("nginx");
    fs::create_dir_all(&folder)?;
    let shown = folder.display();
    let config = format!(
        "daemon off; master_process off; pid {shown}/pid; error_log {shown}/error.log;\n\
         events {{ worker_connections 256; }}\n\
         http {{ access_log off; sendfile on; client_max_body_size 0; client_body_temp_path {shown}/body;\n\
         proxy_temp_path {shown}/proxy; fastcgi_temp_path {shown}/f; uwsgi_temp_path {shown}/u; scgi_temp_path {shown}/s;\n\
         server {{ listen 8090; root {shown}; }}\n\
         server {{ listen 8091; location / {{ proxy_pass http://127.0.0.1:8080; proxy_request_buffering off;\n\
         proxy_http_version 1.1; }} }} }}\n"
    );
    let path = folder.join("nginx.conf");
    fs::write(&path, config)?;
    let near = mesh.pod("near");
    serve(near, near.command("nginx").arg("-c").arg(&path).arg("-p").arg(&folder), 8090)
}

fn nginx_file(mesh: &Mesh) -> Result<Run<'_>> {
    let server = nginx(mesh)?;
    let mut content = vec![0; 1 << 20];
    Pattern(91).fill(0, &mut content);
    fs::write(mesh.dir().join("nginx/file"), &content)?;
    let (url, copy) = (format!("http://{}:8090/file", mesh.pod("near").ip4()), mesh.dir().join("copy"));
    Ok(Box::new(move || {
        let _running = &server;
        let curl = mesh.pod("client").command("curl").args(["-sS", "-f", "-o"]).arg(&copy).arg(&url);
        finishes(curl, SHORT_LIMIT)?;
        let got = fs::read(&copy).unwrap_or_default();
        if got == content {
            return Ok(());
        }
        let harm = if content.starts_with(&got) { Harm::Short } else { Harm::WrongByte };
        Err(Failure { harm, said: format!("{} of {} bytes", got.len(), content.len()) })
    }))
}

fn nginx_upload(mesh: &Mesh) -> Result<Run<'_>> {
    let nginx = nginx(mesh)?;
    let server = Server::start(mesh.pod("near"), 8080, |conn| http_upload(&conn))?;
    let run = curl_upload(mesh, 8091, 8 << 20, SHORT_LIMIT)?;
    Ok(Box::new(move || {
        let _running = (&nginx, &server);
        run()
    }))
}

/// Whether this machine has Go; nothing installs it.
pub(crate) fn has_go() -> bool {
    let asked = Command::new("go").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}
