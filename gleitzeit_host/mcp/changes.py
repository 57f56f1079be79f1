"""Who is told about changes, and what has changed since they were told last."""

from typing import Any

from msgspec import Raw

from gleitzeit_host.mcp.resources import Resources
from gleitzeit_host.mcp.tools import Toolbox
from gleitzeit_host.peer import Outlet

SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"


class Subscriber:
    """Somebody who wants to know: a legacy client since its `initialize`, or one `subscriptions/listen` request."""

    def __init__(self, outlet: Outlet, tag: Raw | None = None, *, tools: bool = True, resources: bool = True) -> None:
        self.tools = tools  # whether to tell when the list of tools changes
        self.resources = resources
        self.uris: dict[str, object] = {}  # resource → what it was like when last looked at
        self._outlet = outlet
        self._tag = tag  # the id of the listen request

    def tell(self, method: str, params: dict[str, Any] | None = None) -> None:
        """Send a notification, tagged with the subscription it belongs to."""
        tag = {} if self._tag is None else {"_meta": {SUBSCRIPTION: self._tag}}
        self._outlet.notify(method, {**tag, **(params or {})})


class Changes:
    """Tells subscribers when a list or a resource is no longer what a client may have seen."""

    def __init__(self, toolbox: Toolbox, resources: Resources) -> None:
        self.subscribers: list[Subscriber] = []
        self._toolbox = toolbox
        self._resources = resources
        self._tools: list[str] | None = None  # as a client may have seen them; None: none has
        self._uris: list[str] | None = None

    def tools_seen(self) -> None:
        """A client sees the list of tools as it is now."""
        self._tools = self._tool_names()

    def resources_seen(self) -> None:
        """A client sees the list of resources as it is now."""
        self._uris = self._resource_uris()

    def subscribe(self, subscriber: Subscriber, uris: list[str]) -> list[str]:
        """Tell somebody about changes from now on; return which of the URIs are resources."""
        self.subscribers.append(subscriber)
        if subscriber.tools and self._tools is None:
            self.tools_seen()
        if subscriber.resources and self._uris is None:
            self.resources_seen()
        return [uri for uri in uris if self.watch(subscriber, uri)]

    def watch(self, subscriber: Subscriber, uri: str) -> bool:
        """Tell about changes of one resource; return whether there is such a one."""
        now = self._resources.fingerprint(uri)
        if now is not None:
            subscriber.uris[uri] = now
        return now is not None

    def look(self) -> None:
        """Something may have changed: tell who wants to know."""
        if not self.subscribers:
            return
        if self._tools is not None and self._tools != (tools := self._tool_names()):
            self._tools = tools
            self._tell("notifications/tools/list_changed", [s for s in self.subscribers if s.tools])
        if self._uris is not None and self._uris != (uris := self._resource_uris()):
            self._uris = uris
            self._tell("notifications/resources/list_changed", [s for s in self.subscribers if s.resources])
        for subscriber in self.subscribers:
            self._look_at_resources(subscriber)

    def _look_at_resources(self, subscriber: Subscriber) -> None:
        for uri, before in subscriber.uris.items():
            now = self._resources.fingerprint(uri)
            if now != before:
                subscriber.uris[uri] = now
                subscriber.tell("notifications/resources/updated", {"uri": uri})

    @staticmethod
    def _tell(method: str, subscribers: list[Subscriber]) -> None:
        for subscriber in subscribers:
            subscriber.tell(method)

    def _tool_names(self) -> list[str]:
        return [tool.name for tool in self._toolbox.available()]

    def _resource_uris(self) -> list[str]:
        return [resource["uri"] for resource in self._resources.listed()]
