"""Where the leader is, as far as this agent knows, and image bytes from there.

**Edge**: reads files through the dialer. Written by the session, read by downloads and consoles.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from agent.errors import DriverError
from cumulet.errors import CumuletError, NotFoundError
from cumulet.link import Dialer, LinkClosedError


class Leader:
    """Mutable: `address` is that of the present session, or None."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer
        self.address: str | None = None

    async def read(self, sha256: str, offset: int) -> AsyncIterator[bytes]:
        """Bytes of an image file. Raises DriverError; the download is resumed later."""
        if self.address is None:
            raise DriverError("NoLeader", f"image {sha256}: no controller to read it from; it is tried again")
        try:
            async for chunk in self._dialer.read_file(self.address, sha256, offset):
                yield chunk
        except NotFoundError as err:
            message = f"image {sha256} is not at the controller {self.address}; import it again"
            raise DriverError("ImageNotFound", message, permanent=True) from err
        except (LinkClosedError, CumuletError) as err:
            raise DriverError("DownloadBroken", f"image {sha256} from {self.address}: {err}") from err
