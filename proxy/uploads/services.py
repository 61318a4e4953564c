"""Builds the parts that take files to fal."""

from __future__ import annotations

from proxy.auth.authenticator import Authenticator
from proxy.clock import Clock
from proxy.http.body_memory import BodyMemory
from proxy.limits.quotas import Quotas
from proxy.limits.retries import RetryAllowance
from proxy.pictures.cleaner import PictureCleaner
from proxy.stores.base import Stores
from proxy.tenants.directory import Directory
from proxy.uploads.destinations import Destinations
from proxy.uploads.new_files import NewFiles
from proxy.uploads.part_attempts import PartAttempts
from proxy.uploads.parts import Parts
from proxy.uploads.slots import Slots
from proxy.uploads.transfer import Transfers
from proxy.uploads.uploaded_pictures import UploadedPictures
from proxy.uploads.whole_files import WholeFiles
from proxy.upstream.client import Upstream
from proxy.upstream.file_urls import FileUrls


class UploadServices:
    """The parts of one application that its routes for files use."""

    def __init__(
        self,
        *,
        upstream: Upstream,
        files: FileUrls,
        stores: Stores,
        directory: Directory,
        authenticator: Authenticator,
        quotas: Quotas,
        retries: RetryAllowance,
        body_memory: BodyMemory,
        cleaner: PictureCleaner,
        clock: Clock,
    ) -> None:
        attempts = PartAttempts(stores.uploads, directory)
        transfers = Transfers(quotas, stores.ledger, retries, clock)
        pictures = UploadedPictures(cleaner, body_memory)
        self.destinations = Destinations(upstream, files)
        self.slots = Slots(stores.uploads, directory, clock)
        self.parts = Parts(upstream, stores.uploads, attempts, transfers)
        self.whole_files = WholeFiles(upstream, stores.uploads, attempts, transfers, retries, pictures)
        self.new_files = NewFiles(upstream, self.destinations, transfers, authenticator, body_memory, pictures)
