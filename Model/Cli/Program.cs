// Entry point of lasp.
return 0;
