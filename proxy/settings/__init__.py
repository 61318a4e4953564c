"""Frozen settings by subject, read once from the environment.

`read` looks at every variable and reports all problems together, each by the variable's name; nothing else in the
program reads the environment. Every variable that holds a secret can also be given as `NAME_FILE`, a path to a file
with the value.

Why not pydantic-settings: see "Written by hand" in docs/architecture.md.
"""

from proxy.settings.environment import read, read_operator, read_session_secrets, read_stores
from proxy.settings.oidc import OidcSettings, RoleRule
from proxy.settings.reader import IN_QUOTES, SettingsError, is_quoted
from proxy.settings.secret import Secret
from proxy.settings.subjects import (
    AlertSettings,
    FalSettings,
    LogSettings,
    ServerSettings,
    SessionSettings,
    Settings,
    StoreSettings,
    TraceSettings,
    VerifierSettings,
    secrets_in,
)
from proxy.settings.values import (
    check_bearer,
    check_origin,
    existing_file,
    is_loopback,
    parse_webhook_secret,
    parse_webhook_url,
    readable_file,
)
from proxy.settings.variables import DEFAULTS, SECRET_NAME, SECRETS, VARIABLES, is_secret_of_tenant, unknown_variables

__all__ = [
    "DEFAULTS",
    "IN_QUOTES",
    "SECRETS",
    "SECRET_NAME",
    "VARIABLES",
    "AlertSettings",
    "FalSettings",
    "LogSettings",
    "OidcSettings",
    "RoleRule",
    "Secret",
    "ServerSettings",
    "SessionSettings",
    "Settings",
    "SettingsError",
    "StoreSettings",
    "TraceSettings",
    "VerifierSettings",
    "check_bearer",
    "check_origin",
    "existing_file",
    "is_loopback",
    "is_quoted",
    "is_secret_of_tenant",
    "parse_webhook_secret",
    "parse_webhook_url",
    "read",
    "read_operator",
    "read_session_secrets",
    "read_stores",
    "readable_file",
    "secrets_in",
    "unknown_variables",
]
