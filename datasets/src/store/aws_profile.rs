//! Reads the profiles of `~/.aws`, as `aws configure` writes them: keys, region and endpoint.
//!
//! A profile that needs a program or a login (SSO, roles, `credential_process`) is refused. The error names the command
//! that makes keys of it.

use std::collections::BTreeMap;
use std::path::PathBuf;

type Variables = BTreeMap<String, String>;
type Section = BTreeMap<String, String>;

/// The settings of a profile that hold no keys but need a login.
const LOGINS: [&str; 7] = [
    "sso_session",
    "sso_start_url",
    "sso_account_id",
    "login_session",
    "role_arn",
    "credential_process",
    "web_identity_token_file",
];
/// The variables that already say how requests are signed.
const OWN: [&str; 6] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
    "AWS_METADATA_ENDPOINT",
];

/// Adds the settings of the profile of `AWS_PROFILE`, or `default`, that the environment does not set.
///
/// # Errors
/// When the profile does not exist, or neither it nor a variable has keys. The text is for people.
pub(super) fn apply(variables: &mut Variables) -> Result<(), String> {
    let home = variables.get("HOME").map(|home| PathBuf::from(home).join(".aws"));
    let file = |variable: &str, name: &str| {
        let given = variables.get(variable).map(PathBuf::from);
        given.or_else(|| Some(home.as_ref()?.join(name))).unwrap_or_default()
    };
    let (config, credentials) = (file("AWS_CONFIG_FILE", "config"), file("AWS_SHARED_CREDENTIALS_FILE", "credentials"));
    // A missing file has no settings.
    let read = |path: &PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let places = format!("{} and {}", config.display(), credentials.display());
    settle(variables, &read(&config), &read(&credentials), &places)
}

fn settle(variables: &mut Variables, config: &str, credentials: &str, places: &str) -> Result<(), String> {
    let named = ["AWS_PROFILE", "AWS_DEFAULT_PROFILE"].iter().find_map(|name| variables.get(*name).cloned());
    let profile = named.clone().unwrap_or_else(|| "default".to_owned());
    let configured = section(config, &profile, true);
    let keys = section(credentials, &profile, false);
    let has_own = OWN.iter().any(|name| variables.contains_key(*name));
    if named.is_some() && configured.is_none() && keys.is_none() && !has_own {
        return Err(format!("AWS_PROFILE names {profile:?}, which is not in {places}"));
    }
    let mut settings = configured.unwrap_or_default();
    settings.extend(keys.unwrap_or_default());
    if !has_own {
        add_keys(variables, &settings, &profile, named.is_some())?;
    }
    let mut add = |names: &[&str], setting: &str| {
        if let Some(value) = settings.get(setting)
            && !names.iter().any(|name| variables.contains_key(*name))
        {
            variables.insert(names[0].to_owned(), value.clone());
        }
    };
    add(&["AWS_REGION", "AWS_DEFAULT_REGION"], "region");
    add(&["AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3"], "endpoint_url");
    Ok(())
}

fn add_keys(variables: &mut Variables, settings: &Section, profile: &str, is_named: bool) -> Result<(), String> {
    let keys = (settings.get("aws_access_key_id"), settings.get("aws_secret_access_key"));
    if let (Some(id), Some(secret)) = keys {
        variables.insert("AWS_ACCESS_KEY_ID".to_owned(), id.clone());
        variables.insert("AWS_SECRET_ACCESS_KEY".to_owned(), secret.clone());
        match settings.get("aws_session_token") {
            Some(token) => variables.insert("AWS_SESSION_TOKEN".to_owned(), token.clone()),
            // The session token of another key would make this key invalid.
            None => variables.remove("AWS_SESSION_TOKEN"),
        };
        return Ok(());
    }
    let login = LOGINS.iter().find(|setting| settings.contains_key(**setting));
    let reason = match login {
        Some(setting) => format!("takes its keys by `{setting}`, which is not supported"),
        None if is_named => "has no keys".to_owned(),
        None => return Ok(()),
    };
    Err(format!(
        "the AWS profile {profile:?} {reason}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, for instance by \
         `eval \"$(aws configure export-credentials --profile {profile} --format env)\"`"
    ))
}

/// Returns a section of an AWS file. In `config`, all sections but the default one are called `profile NAME`.
fn section(text: &str, profile: &str, is_config: bool) -> Option<Section> {
    let mut found = None::<Section>;
    let mut is_in = false;
    for line in text.trim_start_matches('\u{FEFF}').lines() {
        // Indented lines belong to a setting with settings of its own.
        if line.starts_with([' ', '\t', '#', ';']) {
            continue;
        }
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            let mut words = name.split_whitespace();
            let (first, second) = (words.next().unwrap_or_default(), words.next());
            let name = match second {
                Some(name) if is_config && first == "profile" => name,
                None if !is_config || first == "default" => first,
                _ => "",
            };
            is_in = name.trim_matches(['"', '\'']) == profile;
            if is_in {
                found.get_or_insert_default();
            }
        } else if is_in && let Some((name, value)) = line.split_once('=') {
            // A comment may follow a value.
            let value = value.split(" #").next().unwrap_or_default().trim();
            if !value.is_empty() {
                found.get_or_insert_default().insert(name.trim().to_lowercase(), value.to_owned());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "[default]\nregion = eu-central-1\n\n[profile lab]\nregion=us-west-2\ns3 =\n  endpoint_url = http://no\n\
        endpoint_url = https://minio:9000 # ours\n[profile sso]\nsso_session = work\n[profile bare]\nregion=x\n";
    const CREDENTIALS: &str = "# ours\n[lab]\naws_access_key_id=AKIALAB\naws_secret_access_key = s/e=cret\n";

    fn settled(given: &[(&str, &str)]) -> Result<Variables, String> {
        let given = given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let mut variables: Variables = given.collect();
        settle(&mut variables, CONFIG, CREDENTIALS, "the files")?;
        Ok(variables)
    }

    #[test]
    fn a_profile_gives_keys_region_and_endpoint() {
        let lab = settled(&[("AWS_PROFILE", "lab")]).unwrap();
        for (name, value) in [
            ("AWS_ACCESS_KEY_ID", "AKIALAB"),
            ("AWS_SECRET_ACCESS_KEY", "s/e=cret"),
            ("AWS_REGION", "us-west-2"),
            ("AWS_ENDPOINT_URL", "https://minio:9000"),
        ] {
            assert_eq!(lab[name], value);
        }
        assert_eq!(settled(&[]).unwrap(), Variables::from([("AWS_REGION".into(), "eu-central-1".into())]));
    }

    #[test]
    fn variables_stand_before_the_profile() {
        let given = [
            ("AWS_PROFILE", "lab"),
            ("AWS_ACCESS_KEY_ID", "AKIAOWN"),
            ("AWS_SECRET_ACCESS_KEY", "own"),
            ("AWS_DEFAULT_REGION", "ap-south-1"),
            ("AWS_ENDPOINT", "https://other"),
        ];
        let settled = settled(&given).unwrap();
        assert_eq!(settled.len(), given.len(), "{settled:?}");
    }

    #[test]
    fn profiles_without_keys_are_refused_by_name_with_what_makes_keys() {
        for (profile, said) in [("sso", "sso_session"), ("bare", "no keys"), ("absent", "the files")] {
            let text = settled(&[("AWS_PROFILE", profile)]).unwrap_err();
            assert!(text.contains(profile) && text.contains(said), "{text}");
            // This is what the advice says.
            let keys = [("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b"), ("AWS_PROFILE", profile)];
            assert!(settled(&keys).is_ok());
        }
    }
}
