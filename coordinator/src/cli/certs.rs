//! The `certs` and `token` commands make a private certificate authority for trials, and tokens.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{Exit, Failed, of_file, say};
use crate::authority::{self, Made, Wanted};
use crate::serve::access::{Role, Token, TokenUse};
use crate::state::private;

#[derive(Debug, clap::Args)]
pub(super) struct Certs {
    /// Folder of the authority and the certificates. An existing authority is used again.
    dir: PathBuf,
    /// A further name or address of the coordinator; may be given several times.
    #[arg(long, value_name = "NAME")]
    name: Vec<String>,
    /// Days that certificates last. The authority lasts ten times as long.
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// Make a certificate for this person too, beside the coordinator, the workers and one administrator; may be given
    /// several times.
    #[arg(long, value_name = "NAME:ROLE")]
    user: Vec<String>,
    /// Print Kubernetes Secrets for `kubectl apply -f -`.
    #[arg(long)]
    kubernetes: bool,
    /// The namespace of the Secrets.
    #[arg(long, default_value = "llink")]
    namespace: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct MakeToken {
    /// The file of hashed tokens that `serve --tokens` reads. The new token is added.
    file: PathBuf,
    /// The name of the token's owner.
    #[arg(long)]
    name: String,
    /// The role: read, submit, administer or worker.
    #[arg(long)]
    role: Role,
    /// Days that the token is valid; 0: without end.
    #[arg(long, default_value_t = 90)]
    days: u32,
    /// Let only one worker process join with the token.
    #[arg(long)]
    once: bool,
}

fn usage(text: impl Into<String>) -> Failed {
    Exit::Usage.because(text)
}

impl MakeToken {
    pub(super) fn run(&self) -> Result<(), Failed> {
        let lasts = (self.days > 0).then(|| time::Duration::days(i64::from(self.days)));
        let uses = if self.once { TokenUse::Once } else { TokenUse::Any };
        let (token, secret) = Token::make(&self.name, self.role, lasts, uses).map_err(usage)?;
        let mut options = File::options();
        options.create(true).append(true).mode(0o600);
        let written = options.open(&self.file).and_then(|mut file| file.write_all(token.entry().as_bytes()));
        written.map_err(|e| of_file(&self.file, &e))?;
        say(&secret);
        Ok(())
    }
}

impl Certs {
    pub(super) fn run(&self) -> Result<(), Failed> {
        let mut users = vec![("admin".to_owned(), Role::Administer)];
        for user in &self.user {
            let parsed = user.split_once(':').and_then(|(name, role)| Some((name.to_owned(), role.parse().ok()?)));
            let parsed = parsed.filter(|(_, role)| *role != Role::Worker);
            users.push(parsed.ok_or_else(|| usage(format!("--user {user}: expected NAME:ROLE, such as ada:submit")))?);
        }
        let wanted =
            Wanted { server_names: self.server_names(), users, lasts: time::Duration::days(i64::from(self.days)) };
        let kept = self.kept_authority()?;
        let made = authority::make(&wanted, kept.as_ref()).map_err(usage)?;
        write_all(&self.dir, &made)?;
        if self.kubernetes {
            let secrets = authority::kubernetes_secrets(&made, &self.namespace);
            say(&serde_json::to_string_pretty(&secrets).expect("secrets are plain data"));
            return Ok(());
        }
        for pair in &made.pairs {
            say(&format!("{}/{}.crt, .key: {}", self.dir.display(), pair.name, pair.what));
        }
        say(&format!("{}/ca.crt: the authority that all of them trust. Keep ca.key secret", self.dir.display()));
        Ok(())
    }

    fn server_names(&self) -> Vec<String> {
        let service = "llink-coordinator";
        let namespace = &self.namespace;
        let mut names = vec!["localhost".into(), "127.0.0.1".into(), "::1".into(), service.to_owned()];
        names.push(format!("{service}.{namespace}"));
        names.push(format!("{service}.{namespace}.svc"));
        names.push(format!("{service}.{namespace}.svc.cluster.local"));
        names.extend(self.name.iter().cloned());
        names
    }

    fn kept_authority(&self) -> Result<Option<(String, String)>, Failed> {
        let (certificate, key) = (self.dir.join("ca.crt"), self.dir.join("ca.key"));
        if !certificate.exists() && !key.exists() {
            return Ok(None);
        }
        let read = |path: &Path| std::fs::read_to_string(path).map_err(|e| of_file(path, &e));
        Ok(Some((read(&certificate)?, read(&key)?)))
    }
}

fn write_all(dir: &Path, made: &Made) -> Result<(), Failed> {
    std::fs::create_dir_all(dir).map_err(|e| of_file(dir, &e))?;
    let mut files =
        vec![("ca.crt".to_owned(), &made.authority.0, 0o644), ("ca.key".to_owned(), &made.authority.1, 0o600)];
    for pair in &made.pairs {
        files.push((format!("{}.crt", pair.name), &pair.certificate, 0o644));
        files.push((format!("{}.key", pair.name), &pair.key, 0o600));
    }
    for (name, content, mode) in files {
        let path = dir.join(&name);
        private::replace(&path, mode, content.as_bytes()).map_err(|e| of_file(&path, &e))?;
    }
    Ok(())
}
