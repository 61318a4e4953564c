"""Where a secret of a tenant is, in the form of the plan file."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from proxy.settings import SECRET_NAME, is_secret_of_tenant
from proxy.tenants.strict import Strict


class SecretSource(Strict):
    """A form with a secret of the tenant, in a variable or in a file."""

    secret_env: str | None = Field(default=None, pattern=SECRET_NAME, max_length=100)
    secret_file: str | None = Field(default=None, pattern=r"^/", max_length=500)

    @model_validator(mode="after")
    def _check_secret(self) -> Self:
        if (self.secret_env is None) == (self.secret_file is None):
            raise ValueError("name where the secret is: secret_env or secret_file")
        if self.secret_env is not None and not is_secret_of_tenant(self.secret_env):
            raise ValueError(f"{self.secret_env} is one of the proxy's own variables; name another one")
        return self
