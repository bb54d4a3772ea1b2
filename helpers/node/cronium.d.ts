/**
 * Cronium's functions for Node.js jobs: input, output, variables, condition and event of the running job.
 * All are synchronous and throw CroniumError. `any` stands for a JSON value.
 */
interface Functions {
  /** Returns the job's input, any JSON value; {} when none was given. */
  input<T = any>(): T;
  /** Sets the job's result, any JSON value. The last call wins. */
  output(data: unknown): void;
  /** Returns all variables; a change of the object changes no variable. */
  variables(): Record<string, any>;
  /** Returns a variable's value, `defaultValue` (null) if there is none of that name. */
  getVariable<T = any>(key: string, defaultValue?: T): T;
  /** Sets a variable to any JSON value. */
  setVariable(key: string, value: unknown): void;
  /** Removes a variable and returns whether there was one. */
  deleteVariable(key: string): boolean;
  /** Adds a number (1) to a variable and returns the new value; a missing variable counts as 0. */
  incrementVariable(key: string, by?: number): number;
  /** Sets the job's condition to the truth of a value; a string is one of true, 1, yes, on, false, 0, no, off. */
  setCondition(condition: unknown): void;
  /** Returns the condition as set so far, false when it was not. */
  getCondition(): boolean;
  /** Returns the event that started the job, with its jobId, attempt and host; {} without one. */
  event(): Record<string, any>;
}

/** A file of the job cannot be read or written, or a value cannot be stored as JSON. */
declare class CroniumErrorClass extends Error {
  readonly name: "CroniumError";
}

interface CroniumClass extends Functions {
  /** The functions over one pair of directories, by default those that the environment names at each call. */
  new (directories?: { dataDir?: string; outputDir?: string }): Functions;
  readonly Cronium: CroniumClass;
  readonly CroniumError: typeof CroniumErrorClass;
  readonly cronium: Functions;
  readonly default: CroniumClass;
}

declare global {
  /** The helper functions, there in every Node.js job with no import. */
  var cronium: CroniumClass;
}

declare const Cronium: CroniumClass;
export = Cronium;
