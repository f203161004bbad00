//! S3, GCS and Azure: the bucket and key in a URL, and the options of the requests.

use std::collections::BTreeMap;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use url::Url;

use super::aws_profile;
use super::open::bad_url;
use super::traceparent::WithTrace;
use super::{Store, Transfer, with_causes};
use crate::Result;
use crate::shown::credential_of;

/// The time limit of one request, unless `AWS_TIMEOUT` and similar variables say otherwise. Large objects are read in
/// parts, one request each. The largest writes are a run of the `shard` stage and a model's weights.
const REQUEST_TIMEOUT: &str = "120 seconds";

/// The names of one cloud's variables.
struct Cloud {
    /// The prefix of the variables.
    prefix: &'static str,
    /// The variables that name another server than the cloud's own.
    endpoints: &'static [&'static str],
    /// The variable that allows requests without encryption.
    allow_http: &'static str,
    /// The places that keys are taken from, for people.
    keys: &'static str,
}

const AWS: Cloud = Cloud {
    prefix: "AWS_",
    endpoints: &["AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"],
    allow_http: "AWS_ALLOW_HTTP",
    keys: "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE for a profile with keys in ~/.aws",
};
const GOOGLE: Cloud = Cloud {
    prefix: "GOOGLE_",
    endpoints: &["GOOGLE_BASE_URL"],
    allow_http: "GOOGLE_ALLOW_HTTP",
    keys: "GOOGLE_APPLICATION_CREDENTIALS to the file of a service account's key",
};
const AZURE: Cloud = Cloud {
    prefix: "AZURE_",
    endpoints: &["AZURE_ENDPOINT", "AZURE_STORAGE_ENDPOINT"],
    allow_http: "AZURE_ALLOW_HTTP",
    keys: "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
};

fn cloud(scheme: &str) -> &'static Cloud {
    match scheme {
        "s3" | "s3a" => &AWS,
        "gs" => &GOOGLE,
        _ => &AZURE,
    }
}

impl Store {
    pub(super) fn open_cloud(
        url: &str,
        scheme: &str,
        options: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self> {
        let refuse = |reason: &str| bad_url(url, reason);
        let cloud = cloud(scheme);
        if let Some(credential) = credential_of(url) {
            return Err(refuse(&format!("holds {credential}; set {} instead", cloud.keys)));
        }
        // The rules of web addresses do not apply: everything after the bucket is the key, as in the clouds' own tools.
        let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.contains(['?', '#']) {
            return Err(refuse("has no `/` after its bucket; write scheme://bucket/key"));
        }
        let root = Url::parse(&format!("{scheme}://{bucket}/")).map_err(|e| refuse(&e.to_string()))?;
        let prefix = Path::parse(key).map_err(|e| refuse(&with_causes(&e)))?;
        let options = settled(cloud, options).map_err(|reason| refuse(&reason))?;
        // The default comes first, so that a given value replaces it.
        let options = std::iter::once(("timeout".to_owned(), REQUEST_TIMEOUT.to_owned())).chain(options);
        let objects = built(cloud, &root, options).map_err(|e| refuse(&with_causes(&e)))?;
        Ok(Self::with_objects(url, objects, prefix, Transfer::Parts))
    }
}

/// Builds the store, as `object_store::parse_url_opts` does, with requests that carry their trace.
fn built(
    cloud: &Cloud,
    root: &Url,
    options: impl Iterator<Item = (String, String)>,
) -> object_store::Result<Arc<dyn ObjectStore>> {
    macro_rules! built {
        ($builder:ident) => {{
            let known = options.filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse().ok()?, value)));
            let builder = $builder::new().with_url(root.as_str()).with_http_connector(WithTrace);
            let builder = known.fold(builder, |builder, (key, value)| builder.with_config(key, value));
            let store: Arc<dyn ObjectStore> = Arc::new(builder.build()?);
            store
        }};
    }
    Ok(match cloud.prefix {
        "AWS_" => built!(AmazonS3Builder),
        "GOOGLE_" => built!(GoogleCloudStorageBuilder),
        _ => built!(MicrosoftAzureBuilder),
    })
}

/// Returns a cloud's options from variables; an empty variable is not set.
fn settled(
    cloud: &Cloud,
    variables: impl IntoIterator<Item = (String, String)>,
) -> std::result::Result<BTreeMap<String, String>, String> {
    let mut variables: BTreeMap<String, String> =
        variables.into_iter().filter(|(_, value)| !value.trim().is_empty()).collect();
    if cloud.prefix == AWS.prefix {
        aws_profile::apply(&mut variables)?;
    }
    let is_true = |value: &String| ["1", "true", "on", "yes", "y"].contains(&value.to_lowercase().as_str());
    let allows_http = variables.get(cloud.allow_http).is_some_and(is_true);
    for name in cloud.endpoints {
        let Some(endpoint) = variables.get(*name) else { continue };
        if credential_of(endpoint).is_some() {
            return Err(format!("{name} holds a name, a password or a key; set {} instead", cloud.keys));
        }
        if endpoint.starts_with("http://") && !allows_http {
            return Err(format!(
                "{name} is {endpoint}, which is not encrypted; set {}=true to use it all the same",
                cloud.allow_http
            ));
        }
    }
    variables.retain(|name, _| name.starts_with(cloud.prefix));
    Ok(variables)
}

/// Returns advice for a request that was made without keys; `None` for other errors.
pub(super) fn without_keys(url: &str, error: &str) -> Option<String> {
    // The hosts from which a cloud's own machines get the keys of their role.
    let own = ["169.254.169.254", "metadata.google.internal"];
    let keys = cloud(url.split_once("://")?.0).keys;
    own.iter().any(|server| error.contains(server)).then(|| {
        format!("there are no keys for it, and this machine has no role of its own: set {keys}. The error was: {error}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(variables: &[(&str, &str)]) -> std::result::Result<BTreeMap<String, String>, String> {
        let given = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        settled(&AWS, given)
    }

    #[test]
    fn plain_http_is_refused_until_the_variable_that_is_named_is_set() {
        let endpoint = ("AWS_ENDPOINT", "http://127.0.0.1:9000");
        let said = settle(&[endpoint, ("AWS_ALLOW_HTTP", "false")]).unwrap_err();
        assert!(said.contains("AWS_ENDPOINT") && said.contains("set AWS_ALLOW_HTTP=true"), "{said}");
        let options =
            settle(&[endpoint, ("AWS_ALLOW_HTTP", "true"), ("AWS_SESSION_TOKEN", " "), ("HOME", "/x")]).unwrap();
        assert_eq!(options.keys().collect::<Vec<_>>(), ["AWS_ALLOW_HTTP", "AWS_ENDPOINT"]);
        let said = settle(&[("AWS_ENDPOINT", "https://me:5ecret@host")]).unwrap_err();
        assert!(said.contains("AWS_SECRET_ACCESS_KEY") && !said.contains("5ecret"), "{said}");
    }

    #[test]
    fn keys_hold_every_character_and_no_secret() {
        let options = [("AWS_REGION".to_owned(), "us-east-1".to_owned())];
        for (url, prefix) in
            [("s3://bucket/run#3/a?b/c%3Ad", "run#3/a?b/c%3Ad"), ("s3://bucket", ""), ("s3://bucket/a b/ក/", "a b/ក")]
        {
            let store = Store::open_with(url, options.clone()).unwrap();
            assert_eq!(store.prefix.as_ref(), prefix, "{url}");
        }
        for (url, said) in [
            ("s3://AKIA:5ecret@bucket/a", "AWS_SECRET_ACCESS_KEY"),
            ("az://box/a.tsv?sv=1&sig=5ecret", "AZURE_STORAGE_SAS_TOKEN"),
            ("s3://bucket?x", "no `/` after its bucket"),
        ] {
            let text = Store::open_with(url, options.clone()).unwrap_err().to_string();
            assert!(text.contains(said) && !text.contains("5ecret"), "{text}");
        }
    }

    #[test]
    fn whoever_has_no_keys_is_told_the_variables() {
        let error = "Error performing PUT http://169.254.169.254/latest/api/token";
        assert!(without_keys("s3://b/k", error).unwrap().contains("AWS_PROFILE"));
        assert!(without_keys("gs://b/k", error).unwrap().contains("GOOGLE_APPLICATION_CREDENTIALS"));
        assert_eq!(without_keys("s3://b/k", "403 Forbidden"), None);
    }
}
